"""Where alarms go beyond the server: a webhook, a command. Each has a thread of its own, and nobody waits for it.

    sink = Sink("webhook", webhook("http://localhost:9093/api/v2/alerts", labels={"instance": "gpu-1:8080"}))
    sink.put(events)            # never blocks, never raises
    sink.close()

The webhook posts what Prometheus Alertmanager's API v2 takes (a list of alerts); the command gets one event a line, as
JSON, on its standard input.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import random
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime, timezone

log = logging.getLogger(__name__)
WAITING = 100  # deliveries that may wait; what comes beyond them is dropped and counted
TIMEOUT_S = 5.0
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each further try, each by chance up to a half longer


class Sink:
    """Delivers lists of events one after the other, each tried 1 + len(pauses) times.

    `counts`: lists of events that were delivered, failed (all tries), and dropped because too many wait.
    """

    def __init__(self, name: str, deliver: Callable[[list[dict]], None], pauses: tuple = PAUSES_S):
        self.name, self.counts = name, {"delivered": 0, "failed": 0, "dropped": 0}
        self._deliver, self._pauses = deliver, pauses
        self._queue: queue.Queue = queue.Queue(WAITING)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"alarms: {name}", daemon=True)
        self._thread.start()

    def put(self, events: list[dict]) -> None:
        try:
            self._queue.put_nowait(events)
        except queue.Full:
            self.counts["dropped"] += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Try what waits once more, without pauses, for `timeout_s` seconds at most."""
        self._stopped.set()
        with contextlib.suppress(queue.Full):  # full: the thread finds that it is stopped by itself
            self._queue.put_nowait(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (events := self._queue.get()) is not None:
            self._try(events)

    def _try(self, events: list[dict]) -> None:
        for pause in (*self._pauses, None):
            try:
                self._deliver(events)
                self.counts["delivered"] += 1
                return
            except Exception as error:  # whatever it is, serving goes on, and the next delivery gets its chance
                reason = error
            if pause is None or self._stopped.wait(pause * (1 + random.random() / 2)):
                break
        self.counts["failed"] += 1
        log.error("alarms could not be delivered to the %s: %s", self.name, reason)


def webhook(url: str, labels: dict[str, str], timeout_s: float = TIMEOUT_S) -> Callable[[list[dict]], None]:
    """POSTs events to `url`; raises OSError where that fails or the answer is no 2xx."""
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"webhook: found {url!r}, wanted a URL that starts with http:// or https://")

    def deliver(events: list[dict]) -> None:
        body = json.dumps([alert(event, labels) for event in events]).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "ml-e2e"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=timeout_s) as answer:
                answer.read(1 << 16)
        except urllib.error.HTTPError as error:
            with error:  # it holds the connection
                raise OSError(f"{url}: status {error.code}, {error.read(200)!r}") from error

    return deliver


def alert(event: dict, labels: dict[str, str]) -> dict:
    """An event as Alertmanager's `postableAlert` (its api/v2/openapi.yaml): who it is about, and what is to be read.

    The labels say which alarm it is, and are the same when it is resolved; `endsAt` then says since when. The link is
    to its dashboard.
    """
    value = "not measured" if event["value"] is None else f"{event['value']:.4g}"
    summary = f"{event['alarm']} is {value} (alarm when {event['direction']} {event['threshold']:.4g})"
    told = {"summary": f"{summary}: {event['what']}" if event.get("what") else summary}
    told |= {"description": event.get("about", ""), "runbook": event["runbook"]}
    told |= {key: str(event[key]) for key in ("what", "n_samples") if key in event}
    page = {"generatorURL": f"http://{labels['instance']}/dashboard"} if "instance" in labels else {}
    return {
        "labels": {"alertname": event["alarm"], "severity": event["severity"], **labels},
        "annotations": {key: value for key, value in told.items() if value},
        **page,
        "startsAt": rfc3339(event.get("since", event["at"])),
        **({"endsAt": rfc3339(event["at"])} if event["state"] == "resolved" else {}),
    }


def rfc3339(seconds: float) -> str:
    """Unix time as UTC text."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def command(words: list[str], timeout_s: float = 30.0) -> Callable[[list[dict]], None]:
    """Runs a program with the events on its standard input; raises OSError or SubprocessError where it fails."""

    def deliver(events: list[dict]) -> None:
        lines = "".join(json.dumps(event) + "\n" for event in events)
        subprocess.run(words, input=lines, text=True, timeout=timeout_s, check=True, stdout=subprocess.DEVNULL)

    return deliver
