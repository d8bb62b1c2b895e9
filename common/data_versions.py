"""Which data a run saw, and what has changed since.

    then, now = recorded("runs/vision"), present("runs/vision")
    for line in told(compare(then, now)):
        print(line)

Reads `data_manifest.json`, `data_files.csv` and `run.json` of a run, and the data where they say it lies.
A file whose size and time are those recorded counts as unchanged; with `verify` every byte is read again.
Names are `<split>/<path>`, as in the data version: the SHA-256 over sorted names and content hashes (common.log).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common import data_counts
from common.ckpt_file import replace_file
from common.cli import UserError
from common.log import file_sha256, version_of

HIDDEN = (".", "__MACOSX")
SHOWN = 8  # names in a sentence; the rest is counted


@dataclass
class Snapshot:
    """A data set at one time. files: {name: SHA-256}; classes: {class: {split: count}}, empty where not known.

    counts: what the project's manifest counts beside them (common.data_counts).
    """

    where: str
    version: str
    files: dict[str, str]
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # roots that are not there
    counts: dict[str, object] = field(default_factory=dict)


def read_manifest(run_dir: str | Path) -> dict:
    """`data_manifest.json` of a run; UserError where it is absent or no JSON object."""
    path = Path(run_dir) / "data_manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; wanted the folder of a finished training") from error
    except ValueError as error:
        raise UserError(f"{path}: no whole JSON ({error}); train again") from error
    if not isinstance(manifest, dict) or "data_version" not in manifest:
        raise UserError(f"{path}: lacks data_version; train again")
    return manifest


def roots_of(run_dir: str | Path) -> dict[str, str]:
    """{split: the folder or file it was read from}; UserError where neither manifest nor record names them."""
    path = Path(run_dir) / "run.json"
    roots = read_manifest(run_dir).get("roots")
    if not roots and path.exists():
        roots = json.loads(path.read_text(encoding="utf-8")).get("data_roots")
    if not isinstance(roots, dict):
        raise UserError(f"{run_dir}: neither data_manifest.json nor run.json says where the data lies; train again")
    return roots


def list_files(run_dir: Path, files: dict[str, str]) -> str:
    """Write `data_files.csv` for data of one file a split, {split: path}; returns their common version.

    Two splits of one file are one row.
    """
    rows, seen = [], set()
    for split, path in files.items():
        if os.path.realpath(path) not in seen:
            seen.add(os.path.realpath(path))
            stat = os.stat(path)
            rows.append([split, Path(path).name, stat.st_size, stat.st_mtime_ns, file_sha256(path), ""])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["split", "path", "bytes", "mtime_ns", "sha256", "error"])
    table.writerows(rows)
    replace_file(
        run_dir / "data_files.csv", lambda file: file.write(text.getvalue().encode("utf-8", "surrogateescape"))
    )
    return version_of({f"{row[0]}/{row[1]}": row[4] for row in rows})


def read_rows(run_dir: str | Path) -> list[dict[str, str]]:
    """The rows of `data_files.csv`: split, path, sha256, error, and what else the project wrote."""
    path = Path(run_dir) / "data_files.csv"
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; wanted the folder of a finished training") from error
    if not rows or not all(row.get("split") and row.get("path") and row.get("sha256") is not None for row in rows):
        raise UserError(f"{path}: wanted rows with split, path and sha256; train again")
    return rows


def recorded(run_dir: str | Path) -> Snapshot:
    """The data that a run was trained on. UserError where its two files do not agree: one of them was edited."""
    manifest = read_manifest(run_dir)
    files = {_name(row): row["sha256"] for row in read_rows(run_dir) if not row.get("error")}
    try:
        found = version_of(files)
    except ValueError as error:
        raise UserError(f"{run_dir}/data_files.csv: edited or torn ({error}); train again") from error
    wanted, where = manifest["data_version"], "data_manifest.json"
    if "roots" not in manifest:  # the project counts lines or rows, and its data version is over these
        wanted, where = (
            json.loads(Path(run_dir, "run.json").read_text(encoding="utf-8")).get("files_version"),
            "run.json",
        )
    if found != wanted:
        raise UserError(
            f"{run_dir}: data_files.csv gives the version {found[:12]}, {where} says {str(wanted)[:12]}: one of them "
            "was edited or torn; train again"
        )
    return Snapshot(str(run_dir), found, files, manifest.get("classes") or {}, counts=data_counts.counts(manifest))


def present(run_dir: str | Path, verify: bool = False, base: str | Path = "") -> Snapshot:
    """The data of a run as it lies there now; `base` is the folder that relative roots start from.

    A root that is gone leaves its files out and is named in `missing`.
    """
    roots, rows = roots_of(run_dir), read_rows(run_dir)
    by_root: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_root[os.path.join(base, roots[row["split"]])].append(row)  # two splits may lie in one folder
    files, missing = {}, []
    for root, known in by_root.items():
        if not os.path.exists(root):
            missing.append(root)
            continue
        held = {row["path"]: row for row in known}
        for path in _paths(Path(root), known):
            row = held.get(path) or {"split": known[0]["split"], "path": path}
            sha256 = _sha256_now(Path(root), row, verify)
            if sha256 and not (row.get("error") and sha256 == row["sha256"]):  # still as unusable as it was
                files[_name(row)] = sha256
    version = version_of(files) if files else ""
    return Snapshot(f"{run_dir} now", version, files, classes_by_folder(files), missing)


def of_folder(root: str | Path) -> Snapshot:
    """Every visible file under a folder; names are <split>/<class>/... where it has such folders."""
    files = {path: file_sha256(Path(root, path)) for path in _walk(Path(root))}
    if not files:
        raise UserError(f"{root}: no files; wanted the folder of a run, or one with data")
    return Snapshot(str(root), version_of(files), files, classes_by_folder(files))


def snapshot_of(place: str) -> Snapshot:
    """What a command line names: the folder of a run, or a folder of data."""
    if Path(place, "data_manifest.json").exists():
        return recorded(place)
    if Path(place).is_dir():
        return of_folder(place)
    raise UserError(f"{place}: no such folder; wanted that of a run, or one with data")


def _name(row: dict[str, str]) -> str:
    return f"{row['split']}/{row['path']}"


def _paths(root: Path, known: list[dict[str, str]]) -> Iterator[str]:
    """The known files that are there, and new ones of the same kind: same suffixes, and in folders if all known are."""
    if root.is_file():
        yield from {row["path"] for row in known}
        return
    paths = {row["path"] for row in known}
    suffixes, flat = {Path(path).suffix.lower() for path in paths}, any("/" not in path for path in paths)
    for path in _walk(root):
        if path in paths or (Path(path).suffix.lower() in suffixes and (flat or "/" in path)):
            yield path


def _walk(root: Path) -> Iterator[str]:
    """Visible files as sorted relative paths; links to folders are followed, each folder once."""
    seen, found = set(), []
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        found += [Path(folder, name).relative_to(root).as_posix() for name in names if not name.startswith(HIDDEN)]
    return iter(sorted(found, key=os.fsencode))


def _sha256_now(root: Path, row: dict[str, str], verify: bool) -> str:
    """Empty for a file that cannot be read, which counts as gone."""
    path = root if root.is_file() else root / row["path"]
    try:
        stat = path.stat()
        if not verify and (str(stat.st_size), str(stat.st_mtime_ns)) == (row.get("bytes"), row.get("mtime_ns")):
            return row["sha256"]
        return file_sha256(path)
    except OSError:
        return ""


def classes_by_folder(files: dict[str, str]) -> dict[str, dict[str, int]]:
    """{class: {split: count}} of names such as <split>/<class>/...; empty where there are no class folders."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for name in files:
        parts = name.split("/")
        if len(parts) > 2:
            counts[parts[1]][parts[0]] += 1
    return {kind: dict(splits) for kind, splits in sorted(counts.items())}


def compare(a: Snapshot, b: Snapshot) -> dict:
    """What came, went, changed and moved from `a` to `b`, and each class's share in both where it is known.

    A file that left one name and came under another with the same content has moved.
    """
    went, came = sorted(a.files.keys() - b.files.keys()), sorted(b.files.keys() - a.files.keys())
    by_hash: dict[str, list[str]] = defaultdict(list)
    for name in came:
        by_hash[b.files[name]].append(name)
    moved = [[name, by_hash[a.files[name]].pop(0)] for name in went if by_hash.get(a.files[name])]
    left, arrived = {old for old, _ in moved}, {new for _, new in moved}
    return {
        "a": {"where": a.where, "data_version": a.version, "files": len(a.files)},
        "b": {"where": b.where, "data_version": b.version, "files": len(b.files)},
        "same": a.version == b.version,
        "came": [name for name in came if name not in arrived],
        "went": [name for name in went if name not in left],
        "changed": sorted(name for name in a.files.keys() & b.files.keys() if a.files[name] != b.files[name]),
        "moved": moved,
        "classes": _class_mix(a.classes, b.classes),
        "counts": data_counts.moved(a.counts, b.counts),
        "missing": a.missing + b.missing,
    }


def _class_mix(a: dict, b: dict) -> dict[str, dict]:
    """{class: {"a", "b": counts, "share_a", "share_b"}} over all splits; empty where either side does not know."""
    if not a or not b:
        return {}
    counts = [{kind: sum(splits.values()) for kind, splits in side.items()} for side in (a, b)]
    totals = [max(1, sum(side.values())) for side in counts]
    mix = {}
    for kind in sorted({*a, *b}):
        n = [side.get(kind, 0) for side in counts]
        mix[kind] = {"a": n[0], "b": n[1], "share_a": n[0] / totals[0], "share_b": n[1] / totals[1]}
    return mix


def told(found: dict) -> list[str]:
    """`compare`'s answer in a few lines."""
    a, b = found["a"], found["b"]
    if found["same"]:
        return [f"the same data: {a['files']} files, version {a['data_version'][:12]}"]
    version = b["data_version"][:12] or "none"
    lines = [f"{a['files']} → {b['files']} files, version {a['data_version'][:12]} → {version}"]
    lines += [f"not there: {root}" for root in found["missing"]]
    for what in ("came", "went", "changed"):
        if found[what]:
            lines.append(f"{what} ({len(found[what])}): {_some(found[what])}")
    if found["moved"]:
        lines.append(f"moved ({len(found['moved'])}): {_some([f'{old} → {new}' for old, new in found['moved']])}")
    lines += data_counts.told(found["counts"], SHOWN)
    unit = "texts" if any(name.startswith("texts.") for name in found["counts"]) else "files"
    for kind, row in found["classes"].items():
        if row["a"] != row["b"]:
            points = 100 * (row["share_b"] - row["share_a"])
            lines.append(f"class {kind}: {row['a']} → {row['b']} {unit}, {row['share_b']:.1%} ({points:+.1f} points)")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def tell_changes(run_dir: str | Path) -> dict | None:
    """For evaluations: print how the data changed since the run was trained. None where it did not, or is not known."""
    if not Path(run_dir, "data_files.csv").exists():
        print(f"{run_dir}: no data_files.csv, so whether the data changed since training is not known")
        return None
    found = compare(recorded(run_dir), present(run_dir))
    if found["same"]:
        return None
    print("the data changed since this run was trained:")
    for line in told(found):
        print(f"  {line}".encode(errors="backslashreplace").decode())
    return found
