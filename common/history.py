"""An append-only file of JSON lines that shows when it was edited, cut or torn.

    history = History("runs/registry")
    with history.locked():
        history.append({"action": "promote", "version": 3})
    history.read()

Writes `history.jsonl`, where each line carries the SHA-256 of the line before it, and `head.json`, the number of lines
and the hash of the last. A change to any line breaks the chain; lines cut off at the end miss in the head's count.
Whoever rewrites the whole chain and the head is not found out: keep them where only the releasing account may write.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from common.ckpt_file import replace_file
from common.cli import UserError

START = "0" * 64  # what the first line names as the line before it


class RegistryError(UserError):
    """A registry that cannot be trusted or does not hold what was asked for."""


class History:
    """The lines of one registry folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path, self.head = self.folder / "history.jsonl", self.folder / "head.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among processes until the block ends; others wait. A killed process lets go."""
        with self._open_lock() as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            yield

    def _open_lock(self) -> IO:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return open(self.folder / ".lock", "a")
        except OSError as error:
            raise RegistryError(f"{self.folder}: cannot write here ({error.strerror}); pass another --store") from error

    def read(self) -> list[dict[str, Any]]:
        """All entries, the oldest first. RegistryError where a line was edited, cut off, added by hand or torn.

        What a crash leaves, one torn or one whole line past the head, is no damage: the torn one never happened.
        """
        return self._read()[0]

    def _read(self) -> tuple[list[dict[str, Any]], str, int]:
        """(entries, hash of the last line, size in bytes of the whole lines)."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        count, last = self._read_head()
        entries, previous = [], START
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                linked = entry["previous"] == previous and entry["number"] == number
            except (ValueError, TypeError, KeyError):
                linked = False
            if not linked:
                raise RegistryError(
                    f"{self.path}: line {number} was edited, or one before it was: the chain of hashes breaks there; "
                    "put the file back from a copy"
                )
            entries.append(entry)
            previous = hashlib.sha256(line).hexdigest()
            if number == count and previous != last:
                raise RegistryError(f"{self.path}: line {number} is not the one that head.json names; it was edited")
        if not count <= len(entries) <= count + 1:
            raise RegistryError(
                f"{self.path}: found {len(entries)} whole lines, head.json counts {count}: lines were cut off or "
                "added; put the file back from a copy"
            )
        return entries, previous, len(whole)

    def _read_head(self) -> tuple[int, str]:
        if not self.head.exists():
            return 0, START
        try:
            head = json.loads(self.head.read_text())
            return int(head["lines"]), str(head["sha256"])
        except (ValueError, TypeError, KeyError) as error:
            raise RegistryError(f"{self.head}: torn or edited ({error}); put it back from a copy") from error

    def append(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Add one entry, on disk when this returns; call it while `locked`. Returns it with number, time and link."""
        entries, previous, size = self._read()
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = {"number": len(entries) + 1, "utc": now, "user": _user(), **entry, "previous": previous}
        line = json.dumps(entry, allow_nan=False).encode()
        with open(self.path, "ab") as file:
            file.truncate(size)  # a torn line of a crash goes
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        head = {"lines": entry["number"], "sha256": hashlib.sha256(line).hexdigest()}
        replace_file(self.head, lambda file: file.write(json.dumps(head).encode() + b"\n"))
        return entry


def _user() -> str:
    return os.environ.get("USER") or str(os.getuid())
