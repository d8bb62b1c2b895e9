"""Files of rows that a killed command left unfinished: where they lie, and which of their rows are whole.

    partial = partial_of(Path("preds.csv"))
    for row, size in whole_rows(Path("preds.csv.partial")):     # size: bytes up to the end of this row
        ...
    os.truncate("preds.csv.partial", size)                      # what was torn is gone; append from here

Reads .csv and .jsonl, each with ".partial" behind or not. Makes the folder of a file that is to be written.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from common.cli import UserError


def partial_of(out: Path) -> Path:
    """Where the rows of `out` are written until all are there. Raises UserError where that cannot be."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: its folder cannot be made ({error.strerror}); pass another place") from error
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"{out}: {'is a folder' if out.is_dir() else 'may not be written'}; pass a file's name")
    return out.with_name(out.name + ".partial")


def whole_rows(path: Path) -> Iterator[tuple[list[str] | dict, int]]:
    """(row, bytes of the file up to its end): lists of cells of a CSV, its header too; objects of a JSON lines file.

    Ends before the first row that is torn, or cannot be read back, as a cell above csv.field_size_limit.
    """
    json_lines = path.name.removesuffix(".partial").lower().endswith(".jsonl")
    yield from _objects(path) if json_lines else _cells(path)


def _objects(path: Path) -> Iterator[tuple[dict, int]]:
    size = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            size += len(line)
            yield json.loads(line), size


def _cells(path: Path) -> Iterator[tuple[list[str], int]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        lines = _Counted(file)
        table = csv.reader(lines)
        while True:
            try:
                row = next(table, None)
            except csv.Error:
                return
            if row is None or not lines.ended:
                return
            yield row, lines.size


class _Counted:
    """Lines of a text file, with the bytes read so far and whether the last line was whole."""

    def __init__(self, file: TextIO):
        self.file, self.size, self.ended = file, 0, True

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            self.size += len(line.encode("utf-8", "surrogateescape"))
            self.ended = line.endswith("\n")
            yield line
