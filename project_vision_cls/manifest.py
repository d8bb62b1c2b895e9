"""What a data set is, in words and numbers, written once a run.

    sets = {"train": train_set, "val": val_set}
    write_manifest(run_dir, sets, make_manifest(sets))

Writes `data_manifest.json` (counts, sizes, duplicates, what was skipped) and `data_files.csv` (a row for every file).
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.amp_ckpt import replace_file
from common.cli import UserError
from common.log import version_of
from project_vision_cls.data import ImageFolder, class_of, groups_of


def make_manifest(sets: dict[str, ImageFolder]) -> dict:
    """Counts, sizes, duplicates and what was skipped, of data sets by name.

    Its `data_version` is the sha256 over sorted relative paths and file hashes.
    """
    rows = _rows(sets)
    return {
        "data_version": version_of({f"{name}/{record['path']}": record["sha256"] for name, record in rows}),
        "roots": {name: str(photos.root) for name, photos in sets.items()},
        "img_size": next(iter(sets.values())).img_size,
        "classes": _class_counts(sets),
        "photos": {name: len(photos) for name, photos in sets.items()},
        "sizes": _size_range([record for _, record in rows]),
        "unknown_classes": {name: photos.unknown_classes for name, photos in sets.items() if photos.unknown_classes},
        "ignored": {name: photos.ignored for name, photos in sets.items() if photos.ignored},
        "skipped": [
            {"split": name, "path": record["path"], "reason": record["error"]}
            for name, photos in sets.items()
            for record in photos.skipped
        ],
        **_duplicates(rows, groups_of(list(sets.values()))),
    }


def write_manifest(run_dir: Path, sets: dict[str, ImageFolder], manifest: dict) -> None:
    """Write `data_manifest.json`, and `data_files.csv` with a row for every file."""
    text = json.dumps(manifest, indent=1) + "\n"
    replace_file(run_dir / "data_manifest.json", lambda file: file.write(text.encode()))
    skipped = [(name, record) for name, photos in sets.items() for record in photos.skipped]
    replace_file(run_dir / "data_files.csv", lambda file: _write_table(file, [*_rows(sets), *skipped]))


def _rows(sets: dict[str, ImageFolder]) -> list[tuple[str, dict]]:
    """(name of the set, record) of every photo that can be read, numbered as `groups_of` does."""
    return [(name, photos.records[row]) for name, photos in sets.items() for row in photos.rows]


def _write_table(file: BinaryIO, rows: list[tuple[str, dict]]) -> None:
    text = io.TextIOWrapper(file, newline="", encoding="utf-8", errors="surrogateescape")  # names as they are on disk
    table = csv.writer(text)
    columns = ("path", "width", "height", "bytes", "mtime_ns", "sha256", "phash", "error")
    table.writerow(["split", *columns])
    table.writerows([name, *(record[key] for key in columns)] for name, record in rows)
    text.detach()


def _class_counts(sets: dict[str, ImageFolder]) -> dict[str, dict[str, int]]:
    classes = next(iter(sets.values())).classes
    return {c: {name: int((photos.labels == i).sum()) for name, photos in sets.items()} for i, c in enumerate(classes)}


def _size_range(records: list[dict]) -> dict[str, list[int]]:
    """[smallest, median, largest] of width and height, in pixels."""
    sizes = {side: np.array([record[side] for record in records]) for side in ("width", "height")}
    return {side: [int(v.min()), int(np.median(v)), int(v.max())] for side, v in sizes.items()}


def _duplicates(rows: list[tuple[str, dict]], group_of: list[int]) -> dict:
    """Groups of duplicates; those across splits or under two classes are told apart, as they spoil scores."""
    members = defaultdict(list)
    for index, group in enumerate(group_of):
        members[group].append(rows[index])
    groups = []
    for group in (g for g in members.values() if len(g) > 1):
        exact = len({record["sha256"] for _, record in group}) == 1
        groups.append(
            {
                "kind": "exact" if exact else "near",
                "across_splits": len({name for name, _ in group}) > 1,
                "conflicting_labels": len({class_of(record["path"]) for _, record in group}) > 1,
                "files": [f"{name}/{record['path']}" for name, record in group],
            }
        )
    keys = ("across_splits", "conflicting_labels")
    counts = {kind: sum(g["kind"] == kind for g in groups) for kind in ("exact", "near")}
    return {"duplicate_groups": {**counts, **{key: sum(g[key] for g in groups) for key in keys}}, "duplicates": groups}


def tell(manifest: dict) -> None:
    """What the scan found, in a few lines; the rest is in the manifest."""
    lines = [", ".join(f"{n} {name}" for name, n in manifest["photos"].items())]
    lines[0] += f" photos of {len(manifest['classes'])} classes at {manifest['img_size']} px"
    for split, ignored in manifest["ignored"].items():
        lines.append(f"{split}: passed over {_some([f'{n} {what}' for what, n in ignored.items()])}")
    for split, unknown in manifest["unknown_classes"].items():
        told = _some([f"{name} ({n})" for name, n in unknown.items()])
        lines.append(f"{split}: classes that train does not have, counted as wrong: {told}")
    skipped = manifest["skipped"]
    if skipped:
        first = skipped[0]
        lines.append(f"skipped {len(skipped)} unreadable photos, such as {first['path']} ({first['reason']})")
    lost = sorted({class_of(row["path"]) for row in skipped} - set(manifest["classes"]))
    if lost:
        lines.append(f"not among the classes, as no photo of theirs can be read: {_some(lost)}")
    groups = manifest["duplicate_groups"]
    if groups["exact"] or groups["near"]:
        lines.append(
            f"duplicates: {groups['exact']} groups of equal files, {groups['near']} of near copies; "
            f"{groups['across_splits']} across splits, {groups['conflicting_labels']} under several classes"
        )
    missing = [name for name, counts in manifest["classes"].items() if not all(counts.values())]
    if missing:
        lines.append(f"classes without a validation photo: {_some(missing)}")
    for line in lines:  # a file name that is not UTF-8 must not stop the run
        print(line.encode(errors="backslashreplace").decode())


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def held_out(photos: ImageFolder, run_dir: Path) -> ImageFolder:
    """The validation part of a folder that training split by itself, as `data_files.csv` of the run names it.

    Raises UserError where that file is gone or names none of `photos`.
    """
    path = run_dir / "data_files.csv"
    if not path.exists():
        raise UserError(f"{path}: not found, and it names the held-out photos; pass --val_root")
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        names = {row["path"] for row in csv.DictReader(file) if row["split"] == "val"}
    indices = [index for index, name in enumerate(photos.paths) if name in names]
    if not indices:
        raise UserError(f"{photos.root}: none of the {len(names)} photos held out in training is left; pass --val_root")
    return photos.take(indices)
