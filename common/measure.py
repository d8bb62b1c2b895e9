"""What a checkpoint does now: its evaluation repeated, and its server started and asked.

    metrics, rows = evaluate_again(package_of("vision"), files, argv, cwd)
    found = ask_server(package_of("vision"), Path("runs/vision/best.pt"), requests=200)

Runs the project's own commands in processes of their own, as a user would; writes to a temporary folder alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np

import common
from common.cli import UserError
from common.eval_rows import read_rows
from common.run_record import read_json

CODE = Path(common.__file__).parent.parent
PLACES = ("--ckpt", "--run_dir")  # flags of an evaluation that say where, not what
TRAINS = ("--backtest", "--every")  # it trains anew, for minutes: not repeated


def package_of(project: str) -> str:
    """`project_vision_cls` for "vision": the package beside this one whose name says so. UserError if none does."""
    found = [path.parent.name for path in sorted(CODE.glob(f"project_{project}_*/train.py"))]
    if len(found) != 1:
        raise UserError(f"project {project}: found {', '.join(found) or 'no package'}, wanted one project_{project}_*")
    return found[0]


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths}


def without_places(argv: list[str]) -> list[str]:
    """The flags of an evaluation, but for where its files are and those that train models."""
    words, skip = [], False
    for word in argv:
        name, _, value = word.partition("=")
        if not skip and name not in PLACES + TRAINS:
            words.append(word)
        skip = not skip and name in PLACES + TRAINS and not value
    return words


def evaluate_again(
    package: str, files: dict[str, Path], argv: list[str], cwd: str
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """(part of metrics.json, rows) of the recorded evaluation, run on copies of `files`, {name: path}.

    Raises UserError with its last words where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="gate-") as folder:
        for name, path in files.items():
            if name != "metrics.json" and not name.startswith("eval_rows_"):
                shutil.copyfile(path, Path(folder, name))
        command = [sys.executable, "-m", f"{package}.eval", *without_places(argv), "--ckpt", f"{folder}/best.pt"]
        where = cwd if Path(cwd).is_dir() else None
        done = subprocess.run(command, cwd=where, env=_environment(), capture_output=True, text=True)
        if done.returncode:
            words = (done.stderr.strip() or "no words").splitlines()[-1]
            raise UserError(f"the evaluation cannot be repeated: {words.removeprefix('error: ')}")
        parts = list(read_json(f"{folder}/metrics.json")["eval"].values())
        return parts[0], read_rows(Path(folder, parts[0]["rows"]["file"]))


def ask_server(package: str, ckpt: Path, requests: int) -> dict[str, Any]:
    """{"ready": why not, or empty, "p50_ms", "p99_ms", "requests"}: the server's own example, asked over and over.

    A server is ready after its warm-up and after its golden answers came out right. One client, one request at a time.
    """
    with tempfile.TemporaryFile() as words, _server(package, ckpt, words) as (process, url):
        if not url:
            process.wait()
            words.seek(0)
            lines = words.read().decode(errors="replace").strip().splitlines()
            return {"ready": lines[-1] if lines else f"the server ended with {process.returncode}"}
        place = urlsplit(url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        with contextlib.closing(connection):
            path, body = _example(_ask(connection, "GET", "/openapi.json"))
            took = []
            for _ in range(requests):
                began = time.perf_counter()
                _ask(connection, "POST", path, body)
                took.append(1000 * (time.perf_counter() - began))
    p50, p99 = np.quantile(took, [0.5, 0.99])
    return {"ready": "", "p50_ms": float(p50), "p99_ms": float(p99), "requests": requests}


@contextlib.contextmanager
def _server(package: str, ckpt: Path, words: BinaryIO) -> Iterator[tuple[subprocess.Popen, str]]:
    """(process, url) until the block ends; the url is empty where it did not become ready. Its log goes to `words`."""
    command = [sys.executable, "-m", f"{package}.serve", "--ckpt", str(ckpt.resolve()), "--port", "0"]
    with subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=words, text=True) as process:
        try:
            listening, ready = process.stdout.readline(), process.stdout.readline()
            yield process, listening.split()[-1] if ready.startswith("ready") else ""
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    connection.request(method, path, body, {"Content-Type": "application/json"})
    with connection.getresponse() as reply:
        text = reply.read()
    if reply.status != 200:
        raise UserError(f"{method} {path}: the server answered {reply.status} to its own example: {text[:200]!r}")
    return json.loads(text)


def _example(document: dict[str, Any]) -> tuple[str, bytes]:
    """(path, body) of the prediction that the server describes."""
    for path, item in document["paths"].items():
        told = item.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        if not path.startswith(("/v2/", "/admin/")) and "one" in told.get("examples", {}):
            return path, json.dumps(told["examples"]["one"]["value"]).encode()
    raise UserError("/openapi.json: describes no prediction with an example, so there is nothing to time")
