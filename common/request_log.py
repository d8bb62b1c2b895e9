"""The request log: one JSON line per answered prediction, written by a thread of its own.

    log = RequestLog("runs/vision/requests.jsonl", most_mb=100)
    log.put({"ts": time.time(), "req_id": "abc", "status": 200})     # never blocks, never raises
    log.close()

`ts` comes in as seconds and is written as UTC text. What cannot be written is counted in `lost`; nobody waits for it.
Several processes may write to one file: every write is whole lines at its end, and one of them rotates it.
"""

import contextlib
import fcntl
import json
import logging
import os
import queue
import threading
from datetime import datetime, timezone

log = logging.getLogger(__name__)
KEPT = 5  # rotated files, FILE.1 the newest


class RequestLog:
    """Appends to `path`, rotated at `most_mb` (0: never); holds at most 10,000 lines that are not written yet."""

    def __init__(self, path: str, most_mb: float = 0.0):
        self.lost = 0  # lines
        self._path, self._most = path, most_mb * 1e6
        self._entries: queue.Queue = queue.Queue(10_000)
        self._thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self._thread.start()

    def put(self, entry: dict) -> None:
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Write what is queued, for five seconds at most."""
        with contextlib.suppress(queue.Full):  # full: the disk hangs, and the lines are lost anyway
            self._entries.put(None, timeout=1)
        self._thread.join(5)

    def _run(self) -> None:
        start, entries = b"", []
        while None not in entries:
            entries = [self._entries.get()]
            while not self._entries.empty():
                entries.append(self._entries.get())
            lines = [_log_line(entry) for entry in entries if entry]
            try:
                if self._most:
                    rotate(self._path, self._most)
                with open(self._path, "ab", buffering=0) as file:
                    data = start + b"".join(lines)
                    if file.write(data) < len(data):
                        raise OSError("only a part was written")
                start = b""
            except OSError as error:
                self.lost += len(lines)
                if not start:  # the first of a series of failures; the next line must not continue a torn one
                    log.error("request log %s: %s; serving goes on", self._path, error)
                start = b"\n"


def rotate(path: str, most: float) -> None:
    """Where `path` has `most` bytes or more: FILE becomes FILE.1, FILE.1 becomes FILE.2, and the oldest goes.

    Raises OSError. Of several processes one does it; the others see the new, small file.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        if os.fstat(file.fileno()).st_size < most or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return
        for n in range(KEPT - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}.{n}", f"{path}.{n + 1}")
        os.replace(path, f"{path}.1")


def _log_line(entry: dict) -> bytes:
    when = datetime.fromtimestamp(entry["ts"], timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({**entry, "ts": when}).encode() + b"\n"
