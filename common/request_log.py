"""The request log: one JSON line per answered prediction, written by a thread of its own.

    log = RequestLog("runs/vision/requests.jsonl")
    log.put({"ts": time.time(), "req_id": "abc", "status": 200})     # never blocks, never raises
    log.close()

`ts` comes in as seconds and is written as UTC text. What cannot be written is counted in `lost`; nobody waits for it.
"""

import contextlib
import json
import logging
import queue
import threading
from datetime import datetime, timezone

log = logging.getLogger(__name__)


class RequestLog:
    """Appends to `path`; holds at most 10,000 lines that are not written yet."""

    def __init__(self, path: str):
        self.lost = 0  # lines
        self._path = path
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


def _log_line(entry: dict) -> bytes:
    when = datetime.fromtimestamp(entry["ts"], timezone.utc).isoformat(timespec="milliseconds")
    return json.dumps({**entry, "ts": when}).encode() + b"\n"
