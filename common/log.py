r"""Logs that survive a crash, a progress line, and where a run came from.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from common.log import JsonlLogger, read_jsonl
    >>> path = Path(tempfile.mkdtemp(), "train.jsonl")
    >>> with JsonlLogger(path) as log:
    ...     log.log({"epoch": 1, "loss": float("nan")})
    >>> path.read_text()
    '{"epoch": 1, "loss": "NaN"}\n'
    >>> read_jsonl(path)
    ([{'epoch': 1, 'loss': nan}], 0)

Writes JSON lines and CSV, one write call for each whole line, so that a killed process loses at most its last line.
Reads the same files, the files of a data set (for their hash), and the git state of this package.
JSON has no NaN: it is written as the string "NaN", as are "Infinity" and "-Infinity" (the form of Protocol Buffers'
JSON), and `read_jsonl` turns exactly these three strings back into numbers.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy
import PIL
import torch

NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any, where: str = "record") -> Any:
    """`value` as JSON can hold it: numbers or lists for numpy and torch values, text for paths, NaN and infinity.

    TypeError names the place of a value that has no such form.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(f"{where}: found {type(value).__name__}, wanted numbers, text, lists or dicts with text keys")


def _unplain(value: Any) -> Any:
    """The numbers behind the three strings that `plain` writes for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _unplain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unplain(item) for item in value]
    return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _open_append(path: str | Path) -> io.FileIO:
    """The file for appending, unbuffered: each write is one system call. Missing folders are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return open(path, "ab+", buffering=0)


def _is_torn(file: io.FileIO) -> bool:
    """Whether the file ends inside a line, as a crash or a full disk leaves it."""
    if os.fstat(file.fileno()).st_size == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _write(file: io.FileIO, line: bytes) -> None:
    """One whole line in one call; OSError when the disk takes less."""
    written = file.write(line)
    if written != len(line):
        raise OSError(errno.ENOSPC, f"wrote {written} of {len(line)} bytes: disk full?", str(file.name))


class JsonlLogger:
    """Appends records to a file of JSON lines. A torn last line is ended first; `read_jsonl` skips it."""

    def __init__(self, path: str | Path):
        self.file = _open_append(path)

    def log(self, record: dict[str, Any]) -> None:
        """Append one dict. TypeError for what JSON cannot hold (see `plain`), OSError when it cannot be written."""
        line = json.dumps(plain(record), allow_nan=False).encode("ascii") + b"\n"
        _write(self.file, b"\n" + line if _is_torn(self.file) else line)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self.file.close()

    def __enter__(self) -> JsonlLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_jsonl(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """(records, torn): the dicts of a file of JSON lines, and how many non-empty lines were not a whole dict."""
    records, torn = [], 0
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line.decode())
            except ValueError:  # cut short, or not text: counted for the caller
                record = None
            if isinstance(record, dict):
                records.append(_unplain(record))
            else:
                torn += bool(line.strip())
    return records, torn


class CsvLogger:
    """Appends rows to a CSV file under one header, one row a line. A torn last row is cut off first.

    ValueError when the file has another header.
    """

    def __init__(self, path: str | Path, fields: Iterable[str]):
        self.fields = list(fields)
        header = self._line(self.fields)
        self.file = _open_append(path)
        self.file.seek(0)
        found = self.file.readline()
        if not found.endswith(b"\n") and header.startswith(found):  # new file, or its header was torn
            self.file.truncate(0)
            _write(self.file, header)
        elif found != header:
            self.file.close()
            found, wanted = found.decode(errors="replace").strip(), header.decode().strip()
            raise ValueError(f"{path}: found the header {found!r}, wanted {wanted!r}; move the file or name another")

    @staticmethod
    def _line(cells: list[Any]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(cells)
        if "\n" in text.getvalue() or "\r" in text.getvalue():
            raise ValueError(f"CsvLogger: found a line break in {text.getvalue()!r}, wanted one line a row")
        return text.getvalue().encode("utf-8", "surrogateescape") + b"\n"  # file names that are not UTF-8 as on disk

    def log(self, row: dict[str, Any]) -> None:
        """Append one dict that has exactly the fields; ValueError otherwise, OSError when it cannot be written."""
        if set(row) != set(self.fields):
            raise ValueError(f"CsvLogger: found the fields {sorted(row)}, wanted {sorted(self.fields)}")
        line = self._line([plain(row[field], field) for field in self.fields])
        if _is_torn(self.file):  # half a number looks like a number, so half a row must go
            self.file.seek(0)
            self.file.truncate(self.file.read().rfind(b"\n") + 1)
        _write(self.file, line)

    close, __enter__, __exit__ = JsonlLogger.close, JsonlLogger.__enter__, JsonlLogger.__exit__


class Progress:
    """One line on standard error with items, rate (items/s) and time left, redrawn at most 5 times a second.

    total: items to come (0: not known), desc: what they are. Where standard error is no terminal nothing is shown, save
    one line at close() if `end_line`.
    """

    def __init__(self, total: int, desc: str = "", end_line: bool = False):
        self.total, self.desc, self.end_line = total, desc, end_line
        self.done, self.start, self.drawn = 0, time.monotonic(), -math.inf

    def text(self) -> str:
        """The line as it stands now."""
        seconds = time.monotonic() - self.start
        rate = self.done / seconds if seconds > 0 else 0.0
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate > 0 else "? s left"
        end = left if self.done < self.total else f"{seconds:.1f} s"
        of = f"/{self.total}" if self.total else ""
        return f"{self.desc} {self.done}{of}  {rate:.1f}/s  {end}".strip()

    def update(self, n: int = 1) -> None:
        """Count n more items."""
        self.done += n
        if time.monotonic() - self.drawn >= 0.2 and sys.stderr.isatty():
            self.drawn = time.monotonic()
            width = shutil.get_terminal_size().columns - 1  # a longer line would wrap, and \r not reach its start
            print(f"\r{self.text()[:width]}\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Draw the last state and end the line; where there is no terminal, only if asked for."""
        if sys.stderr.isatty():
            print(f"\r{self.text()}\x1b[K", file=sys.stderr)
        elif self.end_line:
            print(self.text(), file=sys.stderr)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hex; read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def version_of(hashes: Mapping[str, str]) -> str:
    """One SHA-256 (hex) for {relative path or name: SHA-256 in hex}, whatever the order; ValueError if empty.

    It takes its own answers too: version_of({"train": version_of(...), "val": version_of(...)}).
    """
    if not hashes:
        raise ValueError("data version: found no files, wanted at least one")
    digest = hashlib.sha256()
    # file names that are not UTF-8 arrive with surrogates; they go back to the bytes on disk
    for name, sha256 in sorted((name.encode("utf-8", "surrogateescape"), sha256) for name, sha256 in hashes.items()):
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"data version: found {sha256!r} for {name!r}, wanted a SHA-256 in hex")
        digest.update(name + b"\0" + sha256.encode() + b"\n")
    return digest.hexdigest()


def data_version(root: str | Path, files: Iterable[str | Path]) -> str:
    """`version_of` the files under root: changes with a name or a byte, not with the order or where root lies.

    ValueError when a file is outside root or there is none.
    """
    root = Path(root).absolute()
    return version_of({Path(file).absolute().relative_to(root).as_posix(): file_sha256(file) for file in files})


def git_state(path: str | Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the repository that tracks `path`; (None, None) without git or a repository that does.

    dirty: a tracked file differs from the commit.
    """
    path = Path(path).absolute()
    # inside a git hook these variables would point to another repository
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*args: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(path.parent), *args]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", path.name)  # a virtual environment inside another repository is not tracked
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or not a repository of ours
        return None, None


def provenance(seed: int, data_version: str | None, **extra: Any) -> dict[str, Any]:
    """Where a run came from, as plain values: git commit, versions, platform, seed, data version, UTC time, command.

    `extra` is added as it is given (see `plain`); ValueError when a name is taken.
    """
    commit, dirty = git_state(__file__)
    record = {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a str subclass, which a checkpoint of plain values would refuse
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "platform": platform.platform(),
        "seed": seed,
        "data_version": data_version,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(sys.argv),
    }
    if taken := record.keys() & extra.keys():
        raise ValueError(f"provenance: found the extra names {sorted(taken)}, wanted other names")
    return {**record, **plain(extra)}
