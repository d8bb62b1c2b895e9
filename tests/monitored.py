"""A server that watches its traffic, as subprocess, and traffic for it."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tiny_models import served, watched_texts

FAST = {
    "window": 50,
    "pause_s": 0,
    "drift": {"length": {"runbook": "Who writes such long texts?", "effect": 0.2, "cooldown_sec": 0}},
    "levels": {"accuracy_drop_labels": {"threshold": 0.3, "consecutive": 1}},
    "slo": {"errors": {"objective": 0.99}},
}


def ask(url: str, path: str, body: object = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def window(url: str, seed: int, **changed) -> dict:
    """Send texts until one window of them was compared; the worker's part of /alerts."""
    worker = lambda: ask(url, "/alerts")["workers"][0]  # noqa: E731
    texts, before, until = (
        watched_texts(1000, seed=seed, **changed),
        worker()["drift"]["windows"],
        time.monotonic() + 60,
    )
    while worker()["drift"]["windows"] == before:
        assert time.monotonic() < until, "no window was compared"
        ask(url, "/predict", {"texts": texts[:10]})
        texts = texts[10:] + texts[:10]
    return worker()


@contextmanager
def watched(folder: Path) -> Iterator[tuple[str, Path]]:
    """(url of a watched server, its request log), with the policy above and a webhook that nobody listens at."""
    (folder / "policy.json").write_text(json.dumps(FAST))
    log = folder / "requests.jsonl"
    flags = ["--form", "watched", "--policy", folder / "policy.json", "--request_log", log]
    with served("tests.tiny_models", *flags, "--webhook", "http://127.0.0.1:9/") as url:
        yield url, log
