"""Files of others → {"text", "label"} lines: what `python -m project_nlp_intent.data import` does.

    import_files(args)          # args as the flags of `add_import_flags` give them

Reads CLINC150's JSON (https://github.com/clinc/oos-eval) or .tsv and .csv files of a label and a text column, such as
3i4k's. Writes OUT/train.jsonl, and val.jsonl and test.jsonl where there are any, and quarantine.jsonl: the lines that
could not be used, with the reason.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.amp_ckpt import replace_file
from common.cli import UserError
from project_nlp_intent.text import TextError, clean

SPLITS = ("train", "val", "test")
Labelled = tuple[int, object, object]  # line (or number) in the file, text, label


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `import`."""
    add = parser.add_argument
    add("file", help="the data file; of tsv and csv the training part")
    add("--format", choices=["clinc150", "tsv", "csv"], required=True, help="what it is")
    add("--out", required=True, help="folder for train.jsonl, val.jsonl and test.jsonl")
    add("--val", help="tsv, csv: file of the validation part (default: none, training holds some out)")
    add("--test", help="tsv, csv: file of the test part")
    add("--columns", help="tsv, csv: names of the columns, such as label,text (default: the first line has them)")
    add("--quotes", action=argparse.BooleanOptionalAction, help="cells may be quoted (default: in csv, not in tsv)")
    add(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="stop at lines that cannot be used in place of putting them aside",
    )


def import_files(args: argparse.Namespace) -> None:
    """Write the parts that the files have, and say how many texts each holds."""
    if args.format == "clinc150":
        parts = clinc150(Path(args.file))
    else:
        files = {"train": args.file, "val": args.val, "test": args.test}
        parts = {name: columns(Path(file), args) for name, file in files.items() if file}
    bad: list[dict] = []
    good = {name: list(_usable(name, rows, bad)) for name, rows in parts.items()}
    if args.strict and bad:
        raise UserError(f"{args.file}{_why(bad)}; mend it or leave --strict out; nothing was written")
    if empty := [name for name, rows in good.items() if not rows]:
        raise UserError(f"{args.file}: no usable text for {empty[0]}{_why(bad)}; is it --format {args.format}?")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in good.items():
        _write(out / f"{name}.jsonl", rows)
    print(f"{', '.join(f'{len(rows)} {name}' for name, rows in good.items())} texts → {out}")
    if bad:
        _write(out / "quarantine.jsonl", bad)
        print(f"{len(bad)} lines could not be used{_why(bad)} → {out}/quarantine.jsonl")
    if "train" in parts:
        print(f"next: python -m project_nlp_intent.train --train_jsonl {out}/train.jsonl")


def clinc150(path: Path) -> dict[str, list[Labelled]]:
    """Parts of a file of the form {"train": [[text, intent], ...], "val", "test", "oos_train", "oos_val", "oos_test"}.

    The out-of-scope texts keep their label "oos"; those for training become a part of their own, train_oos, so that
    nobody trains on them by accident.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); wanted CLINC150's data_full.json or the like"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON ({str(error)[:80]}); wanted CLINC150's data_full.json or the like"
        ) from error
    if not isinstance(held, dict) or not all(isinstance(held.get(name), list) for name in SPLITS):
        found = sorted(held) if isinstance(held, dict) else type(held).__name__
        raise UserError(f"{path}: found {str(found)[:80]}, wanted an object with the lists train, val and test")
    parts = {name: _pairs(held[name]) for name in SPLITS}
    for name in ("val", "test"):
        parts[name] += _pairs(held.get(f"oos_{name}", []))
    return parts | ({"train_oos": _pairs(held["oos_train"])} if held.get("oos_train") else {})


def _pairs(pairs: list) -> list[Labelled]:
    whole = (
        (i, pair) if isinstance(pair, list) and len(pair) == 2 else (i, [None, None]) for i, pair in enumerate(pairs, 1)
    )
    return [(i, text, label) for i, (text, label) in whole]


def columns(path: Path, args: argparse.Namespace) -> Iterator[Labelled]:
    """Rows of a .tsv or .csv file, whatever its suffix, by the columns "text" and "label"."""
    quoted = args.format == "csv" if args.quotes is None else args.quotes
    delimiter, quoting = "\t" if args.format == "tsv" else ",", csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted a .{args.format} file of labels and texts")
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        table = csv.reader(file, delimiter=delimiter, quoting=quoting)
        names = args.columns.split(",") if args.columns else next(table, [])
        names = [name.strip().lower() for name in names]
        if not {"text", "label"} <= set(names):
            raise UserError(
                f"{path}: columns {names[:6]}, wanted text and label; name them, as in --columns label,text"
            )
        text, label = names.index("text"), names.index("label")
        for cells in table:
            if cells:
                whole = len(cells) == len(names)
                yield table.line_num, cells[text] if whole else None, cells[label] if whole else None


def _usable(part: str, rows: Iterable[Labelled], bad: list[dict]) -> Iterator[dict]:
    """The lines to write; what cannot be used goes to `bad`."""
    for line, text, label in rows:
        try:
            clean(text)
            name = str(label).strip() if isinstance(label, (str, int)) else ""
            if not name or any("\udc80" <= letter <= "\udcff" for letter in text + name):
                raise TextError("no label, or not UTF-8")
            yield {"text": text, "label": name}
        except TextError as error:
            bad.append({"part": part, "line": line, "reason": str(error), "content": repr((text, label))[:200]})


def _why(bad: list[dict]) -> str:
    return f" (line {bad[0]['line']} of {bad[0]['part']}: {bad[0]['reason']})" if bad else ""


def _write(path: Path, rows: list[dict]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    replace_file(path, lambda file: file.write(lines.encode("utf-8", "backslashreplace")))
