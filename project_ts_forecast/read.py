"""A CSV of series → rows of stamps and numbers, block by block, as they stand in the file.

    layout = find_layout("data.csv", time_col=None, value_cols=None)    # which columns are what; None: worked out
    for block in read_blocks("data.csv", layout):                       # block.series, .times, .values (n, C), .rows

Commas, semicolons, tabs; decimal commas; byte-order marks; a header or none; long (a row a stamp and series) or wide
(a column a channel, or with `wide` a column a series). Missing values in any usual spelling become NaN and are counted
later; other text stops with its row. Reads the file once, from front to back, and holds one block.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.cli import UserError
from project_ts_forecast.stamps import parse_times

BLOCK = 50_000  # rows
MISSING = {"", "nan", "na", "n/a", "#n/a", "#na", "null", "none", "nil", "-", "--", "?", ".", "missing", "nat"}
TIME_NAMES = {"time", "date", "datetime", "timestamp", "stamp", "ds", "month", "day", "year", "utc", "date_time"}
DEMO = "A demo series: python -m project_ts_forecast.synthetic --out data/ts"


@dataclass
class Layout:
    """How a file is written, and which of its columns are what. series_col: "" for one series; time_col: "" for none.

    value_cols are forecast; covariate_cols only help. wide: each value column is a series of its own.
    """

    value_cols: list[str]
    time_col: str = ""
    series_col: str = ""
    covariate_cols: list[str] = field(default_factory=list)
    wide: bool = False
    time_format: str = ""
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    header: list[str] = field(default_factory=list)
    has_header: bool = True

    @property
    def columns(self) -> list[str]:
        """Names of the channels, those to forecast first."""
        return self.value_cols + self.covariate_cols


class Block(NamedTuple):
    """Rows of a file: series (names) or None, times (int64 µs) or None, values (n, C) float64, rows (numbers in it)."""

    series: list[str] | None
    times: np.ndarray | None
    values: np.ndarray
    rows: np.ndarray
    style: dict


def find_layout(path: str | Path, **flags: object) -> Layout:
    """Look at the head of a file. flags: fields of Layout that are already known; columns that are None are worked out.

    Raises UserError for a file that is absent, empty or no table, and for columns that are not there.
    """
    path = Path(path)
    known = {name: value for name, value in flags.items() if value is not None}
    encoding, text = _head(path)
    lines = [line for line in text.splitlines() if line.strip()][:200]
    if not lines:
        raise UserError(f"{path}: the file is empty; wanted a header and rows of numbers. {DEMO}")
    delimiter = max(";\t|,", key=lambda mark: (lines[0].count(mark), mark == ","))
    if not lines[0].count(delimiter):
        delimiter = ","
    rows = list(csv.reader(lines, delimiter=delimiter))
    has_header = any(_number(cell, delimiter) is None and not _is_stamp(cell) for cell in rows[0])
    header = [cell.strip() for cell in rows[0]] if has_header else [f"column{i + 1}" for i in range(len(rows[0]))]
    if len(set(header)) < len(header) or "" in header[1:]:
        raise UserError(f"{path}: column names must be there and differ, found {header[:12]}; mend the header")
    header[0] = header[0] or "index"
    body = rows[1:] if has_header else rows
    if not body:
        raise UserError(f"{path}: a header and no rows; wanted rows of numbers. {DEMO}")
    given = set(known)
    layout = Layout(known.pop("value_cols", []), **known)
    layout.encoding, layout.delimiter, layout.header, layout.has_header = encoding, delimiter, header, has_header
    _choose_columns(path, layout, body, given)
    return layout


def _head(path: Path) -> tuple[str, str]:
    """(encoding, first 256 KB as text)."""
    try:
        with open(path, "rb") as file:
            data = file.read(1 << 18)
            whole = not file.read(1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); wanted a CSV file. {DEMO}") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = io.TextIOWrapper(io.BytesIO(data), encoding, errors="strict" if whole else "ignore").read()
    except UnicodeDecodeError:
        encoding = "cp1252"  # what older spreadsheets write
        text = data.decode(encoding, errors="replace")
    if "\0" in text:
        raise UserError(f"{path}: holds zero bytes, so it is no text; wanted a CSV file")
    return encoding, text if whole else text.rpartition("\n")[0]


def _choose_columns(path: Path, layout: Layout, body: list[list[str]], given: set[str]) -> None:
    """Fill in the columns that no flag names, by what the first rows hold."""
    named = [layout.time_col, layout.series_col, *layout.value_cols, *layout.covariate_cols]
    if absent := [name for name in named if name and name not in layout.header]:
        raise UserError(f"{path}: no column {', '.join(map(repr, absent))}; there are {', '.join(layout.header[:40])}")
    whole = [row for row in body if len(row) == len(layout.header)]
    cells = dict(zip(layout.header, zip(*whole, strict=True), strict=False))
    if not cells:
        raise UserError(f"{path}: no row has the {len(layout.header)} cells of the header; is it one table?")
    free = [name for name in layout.header if name not in named]
    if not layout.time_col and "time_col" not in given:
        layout.time_col = next((name for name in free if _looks_like_times(name, cells[name])), "")
    free = [name for name in free if name != layout.time_col]
    texts = [name for name in free if any(_number(cell, layout.delimiter) is None for cell in cells[name])]
    if not layout.series_col and "series_col" not in given and not layout.value_cols:
        layout.series_col = _names_series(texts, cells, layout.delimiter)
    if not layout.value_cols:
        texts = [name for name in texts if name != layout.series_col]
        if texts and not layout.series_col:
            raise UserError(
                f"{path}: column {texts[0]!r} holds text such as {cells[texts[0]][0][:30]!r}; pass --series_col "
                f"{texts[0]} if it names the series, or name the columns of numbers with --value_cols"
            )
        layout.value_cols = [name for name in free if name not in texts and name not in ("index", layout.series_col)]
    if not layout.value_cols:
        raise UserError(
            f"{path}: no column of numbers left to forecast; the columns are {', '.join(layout.header[:40])}"
        )
    if layout.wide and (layout.series_col or layout.covariate_cols):
        raise UserError("--wide makes each column a series: it goes with neither --series_col nor --covariate_cols")


def _names_series(texts: list[str], cells: dict[str, tuple[str, ...]], delimiter: str) -> str:
    """The only column of text, if its words come again and none is a number; else ""."""
    if len(texts) != 1:
        return ""
    held = cells[texts[0]]
    words = all(_number(cell, delimiter) is None for cell in held)
    return texts[0] if words and 2 * len(set(held)) <= len(held) else ""


def _looks_like_times(name: str, cells: tuple[str, ...]) -> bool:
    """By what the cells hold, or by a usual name (then unix time, or a form that --time_format has to tell)."""
    held = [cell for cell in cells if cell.strip()][:20]
    return bool(held) and (all(map(_is_stamp, held)) or name.strip().lower().replace(" ", "_") in TIME_NAMES)


def _is_stamp(cell: str) -> bool:
    return bool(re.match(r"\d{4}[-/]\d\d?([-/]\d\d?)?([T ]|$)", cell.strip()))


def _number(cell: str, delimiter: str) -> float | None:
    """A cell as a number, NaN for a missing one, None for other text."""
    cell = cell.strip()
    if cell.lower() in MISSING:
        return np.nan
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        if delimiter == "," or not re.fullmatch(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)?,\d+([eE][+-]?\d+)?", cell):
            return None
    return float(cell.replace(".", "").replace(",", "."))


def _numbers(cells: tuple[str, ...], column: str, layout: Layout, rows: np.ndarray) -> np.ndarray:
    """(n,) float64, NaN for missing cells; infinities come back as they are. Raises UserError with the row."""
    try:
        return np.array(cells, np.float64)
    except ValueError:
        values = [_number(cell, layout.delimiter) for cell in cells]
    if None in values:
        i = values.index(None)
        raise UserError(
            f"row {rows[i]}, column {column!r}: {cells[i][:40]!r} is no number; wanted one, or a missing value such as "
            "an empty cell or NaN"
        )
    return np.array(values, np.float64)


def read_blocks(path: str | Path, layout: Layout, block: int = BLOCK) -> Iterator[Block]:
    """The file's rows, `block` at a time. Raises UserError with the number of the first row that is not as the rest."""
    first = 1 + layout.has_header
    with open(path, encoding=layout.encoding, newline="") as file:
        rows = csv.reader(file, delimiter=layout.delimiter)
        try:
            if layout.has_header:
                next(row for row in rows if row)
            while part := list(islice(rows, block)):
                yield parse_rows(part, layout, first)
                first += len(part)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not all of it is {layout.encoding} text ({error}); save it as UTF-8") from error
        except csv.Error as error:
            raise UserError(f"{path}: one of the rows from {first} on is no CSV ({error}); mend its quotes") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def parse_rows(part: list[list[str]], layout: Layout, first: int) -> Block:
    """Rows of text → numbers. first: the number of the first row in the file."""
    width = len(layout.header)
    numbers = np.arange(first, first + len(part))
    if any(len(row) != width for row in part):
        keep = [i for i, row in enumerate(part) if row]  # empty lines are nothing
        part, numbers = [part[i] for i in keep], numbers[keep]
        wrong = next((i for i, row in enumerate(part) if len(row) != width), None)
        if wrong is not None:
            raise UserError(f"row {numbers[wrong]} has {len(part[wrong])} cells, wanted {width} as in the header")
    cells = dict(zip(layout.header, zip(*part, strict=True), strict=True)) if part else dict.fromkeys(layout.header, ())
    values = [_numbers(cells[name], name, layout, numbers) for name in layout.columns]
    times, style = None, {}
    if layout.time_col:
        times, style = parse_times(list(cells[layout.time_col]), layout.time_format, first)
    series = [name.strip() for name in cells[layout.series_col]] if layout.series_col else None
    return Block(series, times, np.stack(values, 1), numbers, style)
