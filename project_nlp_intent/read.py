"""Labelled texts from files, line by line; what cannot be used is kept apart with its line and the reason.

    rows, bad = read_labelled(Path("data/nlp/train.jsonl"))
    rows[0]      # Row(line=1, text="Where is my order?", label="order_tracking")
    bad[0]       # {"file": ..., "line": 7, "reason": "the text is null, wanted a string", "content": ...}

Reads .jsonl ({"text", "label"} a line), .csv (a header with text and label; quoted cells may hold line breaks) and .tsv
(the same with tabs). UTF-8, with or without a byte order mark; line ends of any system. Writes nothing.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.cli import UserError
from project_nlp_intent.text import TextError, clean

SUFFIXES = (".jsonl", ".csv", ".tsv")
LAYOUT = 'wanted .jsonl with {"text": "...", "label": "..."} a line, or .csv or .tsv with the header text, label'
BLANK = "the line is empty"
DEMO = "Demo texts: python -m project_nlp_intent.synthetic --out data/nlp"


class Row(NamedTuple):
    """A text as it was written, what the file calls its class, and where it stood (1 is the first line)."""

    line: int
    text: str
    label: str


def read_labelled(path: Path) -> tuple[list[Row], list[dict]]:
    """(rows, what was put aside). Raises UserError where there is no such file, or nothing in it can be used."""
    rows, bad = [], []
    for line, record, content in records(path):
        try:
            if isinstance(record, str):
                raise TextError(record)
            rows.append(Row(line, _text(record), _label(record)))
        except TextError as error:
            bad.append({"file": str(path), "line": line, "reason": str(error), "content": content[:200]})
    if not rows:
        why = f"; line {bad[0]['line']}: {bad[0]['reason']}" if bad else ""
        raise UserError(f"{path}: no labelled text among {len(bad)} lines{why}; {LAYOUT}. {DEMO}")
    return rows, bad


def records(path: Path, blank_too: bool = False) -> Iterator[tuple[int, dict | str, str]]:
    """(line, record or the reason why there is none, the line as it stands) of a .jsonl, .csv or .tsv file.

    Blank lines are passed over, unless `blank_too`. Raises UserError for a file that is not there or of another suffix.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {LAYOUT}. {DEMO}")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: suffix {path.suffix or 'missing'!r}; {LAYOUT}. {DEMO}")
    found = _json_lines(path) if path.suffix.lower() == ".jsonl" else _table(path)
    yield from (entry for entry in found if blank_too or entry[1] != BLANK)


def _json_lines(path: Path) -> Iterator[tuple[int, dict | str, str]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            content = line.decode("utf-8", "replace").strip()
            if not content:
                yield number, BLANK, ""
                continue
            try:
                record = json.loads(line.decode())
            except (ValueError, RecursionError) as error:  # of bytes that are not UTF-8 too
                yield number, f"not JSON in UTF-8 ({str(error)[:80]})", content
                continue
            yield number, record if isinstance(record, dict) else "not a JSON object", content


def _table(path: Path) -> Iterator[tuple[int, dict | str, str]]:
    tabs = path.suffix.lower() == ".tsv"
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        table = csv.reader(file, delimiter="\t" if tabs else ",")
        header = [name.strip().lower() for name in next(table, [])]
        if "text" not in header:
            raise UserError(f"{path}: the header is {header[:6]}, wanted a column text; {LAYOUT}. {DEMO}")
        while True:
            line = table.line_num + 1  # a row begins on the line after the one before it ended
            try:
                cells = next(table, None)
            except csv.Error as error:  # a cell of more than 128 KiB: a quote that nobody closed
                yield line, f"not a row ({error})", ""
                continue
            if cells is None:
                return
            content = io.StringIO()
            csv.writer(content, lineterminator="").writerow(cells)
            shown = content.getvalue().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            yield line, _cells(header, cells) if any(cell.strip() for cell in cells) else BLANK, shown


def _cells(header: list[str], cells: list[str]) -> dict | str:
    if len(cells) != len(header):
        return f"{len(cells)} cells, wanted {len(header)} as in the header"
    if any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell):
        return "not UTF-8"
    return dict(zip(header, cells, strict=True))


def _text(record: dict) -> str:
    if "text" not in record:
        raise TextError(f"no text; the line has {', '.join(map(repr, list(record)[:5])) or 'nothing'}")
    clean(record["text"])
    return record["text"].encode("utf-8", "replace").decode()  # a lone surrogate could be written nowhere


def _label(record: dict) -> str:
    label = record.get("label")
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        found = "missing" if "label" not in record else "null" if label is None else f"a {type(label).__name__}"
        raise TextError(f"the label is {found}, wanted a name or an integer")
    if not str(label).strip():
        raise TextError("the label is empty, wanted a name or an integer")
    return str(label).strip()
