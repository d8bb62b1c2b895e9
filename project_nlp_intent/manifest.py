"""What a data set is, in words and numbers, written once a run.

    sets = {"train": train_set, "val": val_set}
    write_manifest(run_dir, sets, make_manifest(sets))

Writes `data_manifest.json` (counts, lengths, duplicates, what was put aside), `data_texts.csv` (split, file and line of
every text), where there are any `quarantine.jsonl` (the lines that could not be used, with the reason), and
`vocab.json`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from common.amp_ckpt import replace_file
from common.cli import UserError
from common.log import version_of
from project_nlp_intent.data import OUT, IntentDataset
from project_nlp_intent.encode import Encoder
from project_nlp_intent.text import script, words

LISTED = 20  # duplicates, texts under several labels and the like that the manifest names


def make_manifest(sets: dict[str, IntentDataset]) -> dict:
    """Counts, lengths, duplicates and what was put aside, of data sets by name.

    Its `data_version` is that of `version`.
    """
    first = next(iter(sets.values()))
    lengths = {name: np.array([len(words(text)) for text in part.texts]) for name, part in sets.items()}
    return {
        "data_version": version(sets),
        "files": {name: str(part.path) for name, part in sets.items()},
        "texts": {name: len(part) for name, part in sets.items()},
        "classes": _class_counts(sets),
        "out_of_scope": {name: int((part.labels == OUT).sum()) for name, part in sets.items()},
        "words": {name: [int(n.min()), int(np.median(n)), int(n.max())] for name, n in lengths.items()},
        "scripts": dict(Counter(script(text) for text in first.texts)),
        "new_classes": {name: part.new_classes for name, part in sets.items() if part.new_classes},
        "rare_classes": {c: n for c, n in _class_counts({"train": first}).items() if n["train"] < 2},
        "quarantined": {name: len(part.bad) for name, part in sets.items() if part.bad},
        **_repeats(sets),
    }


def version(sets: dict[str, IntentDataset]) -> str:
    """The data version: a sha256 over the names of the sets and their texts and labels, in order."""
    return version_of({name: _hash(part) for name, part in sets.items()})


def _hash(part: IntentDataset) -> str:
    digest = hashlib.sha256()
    for row in part.rows:
        digest.update(json.dumps([row.text, row.label]).encode() + b"\n")
    return digest.hexdigest()


def _class_counts(sets: dict[str, IntentDataset]) -> dict[str, dict[str, int]]:
    counts = {name: np.bincount(p.labels[p.labels >= 0], minlength=len(p.classes)) for name, p in sets.items()}
    classes = next(iter(sets.values())).classes
    return {c: {name: int(n[i]) for name, n in counts.items()} for i, c in enumerate(classes)}


def _repeats(sets: dict[str, IntentDataset]) -> dict:
    """Equal texts: how many are copies, lie in several splits, or stand under several labels, with some examples."""
    places = defaultdict(list)  # cleaned text → (split, label) of every time it comes
    for name, part in sets.items():
        for text, row in zip(part.texts, part.rows, strict=True):
            places[text].append((name, row.label))
    repeated = {text: found for text, found in places.items() if len(found) > 1}
    torn = {text: sorted({label for _, label in found}) for text, found in repeated.items()}
    across = {text: sorted({name for name, _ in found}) for text, found in repeated.items()}
    torn, across = ({text: v for text, v in table.items() if len(v) > 1} for table in (torn, across))
    counts = {
        "copies": sum(len(found) - 1 for found in repeated.values()),
        "across_splits": len(across),
        "several_labels": len(torn),
    }
    some = {"across_splits": list(across)[:LISTED], "several_labels": dict(list(torn.items())[:LISTED])}
    return {"duplicates": counts, "duplicate_examples": some}


def write_manifest(run_dir: Path, sets: dict[str, IntentDataset], manifest: dict) -> None:
    """Write `data_manifest.json`, `data_texts.csv` and `quarantine.jsonl`."""
    _write(run_dir / "data_manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["split", "file", "line", "label"])
    for name, part in sets.items():
        rows.writerows([name, part.path, row.line, row.label] for row in part.rows)
    _write(run_dir / "data_texts.csv", table.getvalue())
    bad = [{"split": name, **entry} for name, part in sets.items() for entry in part.bad]
    if bad:
        _write(run_dir / "quarantine.jsonl", "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in bad))


def write_vocab(path: Path, encoder: Encoder) -> None:
    """What the nets read, for people; the checkpoint has it too."""
    held = encoder.assets()
    what = {name: held[name] for name in ("tokenizer", "max_len", "vocab", "merges") if held[name]}
    _write(path, json.dumps({**what, "ngrams": len(encoder.ngrams)}, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    replace_file(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def tell(manifest: dict, sets: dict[str, IntentDataset]) -> None:
    """What was found, in a few lines; the rest is in the manifest."""
    lines = [", ".join(f"{n} {name}" for name, n in manifest["texts"].items())]
    lines[0] += f" texts of {len(manifest['classes'])} classes"
    for name, part in sets.items():
        if part.bad:
            first = part.bad[0]
            lines.append(f"{name}: put {len(part.bad)} lines aside, such as line {first['line']}: {first['reason']}")
        if name in manifest["new_classes"]:
            told = [f"{c} ({n})" for c, n in manifest["new_classes"][name].items()]
            lines.append(f"{name}: classes that train does not have, counted as wrong: {_some(told)}")
    counts = manifest["duplicates"]
    if any(counts.values()):
        lines.append(
            f"duplicates: {counts['copies']} texts come again, {counts['across_splits']} of them across splits; "
            f"{counts['several_labels']} stand under several labels"
        )
    if manifest["rare_classes"]:
        lines.append(f"classes of fewer than 2 training texts: {_some(list(manifest['rare_classes']))}")
    outside = {name: n for name, n in manifest["out_of_scope"].items() if n}
    if outside:
        lines.append(f"out of scope: {', '.join(f'{n} {name}' for name, n in outside.items())}")
    for line in lines:
        print(line)


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def held_out(texts: IntentDataset, run_dir: Path) -> IntentDataset:
    """The validation part of a file that training split by itself, as `data_texts.csv` of the run names it.

    Raises UserError where that file is gone or names none of `texts`.
    """
    path = run_dir / "data_texts.csv"
    if not path.exists():
        raise UserError(f"{path}: not found, and it names the held-out texts; pass --val_jsonl")
    with open(path, newline="", encoding="utf-8") as file:
        lines = {int(row["line"]) for row in csv.DictReader(file) if row["split"] == "val"}
    indices = [index for index, row in enumerate(texts.rows) if row.line in lines]
    if not indices:
        raise UserError(f"{texts.path}: none of the {len(lines)} texts held out in training is left; pass --val_jsonl")
    return texts.take(indices)
