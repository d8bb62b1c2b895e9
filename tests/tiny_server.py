"""Tiny model servers as subprocesses on free ports, and requests to them byte by byte."""

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT

PATIENCE_S = 60  # how long a test waits for what must happen; far beyond what a busy machine needs

TINY_SERVER = """
import argparse, os, sys, time
import numpy as np
from common.server_microbatch import Route, add_server_flags, run_server

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)

class Predictor:
    model_id, example = "tiny-1", "2"
    def __init__(self, args):
        self.args = args
        if args.load_gate:
            wait_for(args.load_gate)
    def decode(self, item):
        if item == "refuse":
            raise ValueError("this text is not wanted")
        return item
    def predict_rows(self, rows):
        for row in rows:
            if row.startswith("wait:"):
                open(row[5:] + ".started", "w").close()
                wait_for(row[5:])
            if row == "raise":
                raise RuntimeError("secret detail")
        values = np.array([float(row) if row.isdigit() else np.nan if row == "nan" else 0.0 for row in rows]) * 2
        return [{"pred": value, "prob": 0.5, "rows": len(rows)} for value in values.tolist()]
    def check_golden(self):
        if self.args.bad_golden:
            raise ValueError("golden answer 0: found 4.0, wanted 5.0")

parser = argparse.ArgumentParser()
add_server_flags(parser, 8080)
parser.add_argument("--load_gate", default="")
parser.add_argument("--bad_golden", action="store_true")
args = parser.parse_args()
sys.exit(run_server(lambda: Predictor(args), Route("/predict", "x", "xs"), args))
"""


class Tiny:
    """A running server; stopped and its exit code checked by the fixture."""

    script_text, model_id = TINY_SERVER, "tiny-1"

    def __init__(self, folder: Path, *flags: str, ready: bool = True):
        script = folder / "tiny_server.py"
        script.write_text(self.script_text)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.errors = open(folder / "stderr.txt", "w+")  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), (line, self.stderr())
        self.port = int(line.rsplit(":", 1)[1])
        if ready:
            assert self.process.stdout.readline() == f"ready with model {self.model_id}\n", self.stderr()

    def stderr(self) -> str:
        return Path(self.errors.name).read_text()

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def ask(self, method: str, path: str, body: object = None, headers: dict | None = None):
        """(status, headers, parsed body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, dict(answer.getheaders()), json.loads(text) if text else None
        finally:
            connection.close()

    def predict(self, item: object, **headers: str):
        return self.ask("POST", "/predict", {"x": item}, {key.replace("_", "-"): v for key, v in headers.items()})

    def in_background(self, item: object) -> queue.Queue:
        """Ask in a thread; the answer, or the exception, comes in the queue."""
        answers: queue.Queue = queue.Queue()

        def run():
            try:
                answers.put(self.predict(item))
            except Exception as error:
                answers.put(error)

        threading.Thread(target=run, daemon=True).start()
        return answers

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def starting(kind: type[Tiny], folder: Path) -> Iterator[Callable[..., Tiny]]:
    """For a fixture: what starts servers of this kind, which are closed at its end."""
    servers = []

    def start(*flags, ready=True) -> Tiny:
        servers.append(kind(folder, *flags, ready=ready))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def wait_until(condition, what: str):
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"never happened: {what}"
        time.sleep(0.005)


def request_bytes(item: object, extra: str = "") -> bytes:
    body = json.dumps({"x": item}).encode()
    return f"POST /predict HTTP/1.1\r\nHost: t\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_answer(stream) -> tuple[int, dict, bytes]:
    status = int(stream.readline().split()[1])
    headers = {}
    while (line := stream.readline().decode().strip()) != "":
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    return status, headers, stream.read(int(headers.get("content-length", 0)))


def blocked(server: Tiny, tmp_path: Path, name: str = "gate") -> tuple[Path, queue.Queue]:
    """Let the model hang on one request; touching the returned path frees it."""
    gate = tmp_path / name
    answers = server.in_background(f"wait:{gate}")
    wait_until((tmp_path / f"{name}.started").exists, "the model got the blocking row")
    return gate, answers


TOKEN = "0123456789abcdef-admin"
RELOADABLE = (
    TINY_SERVER.replace('    model_id, example = "tiny-1", "2"\n', '    example = "2"\n')
    .replace(
        "        self.args = args\n",
        "        self.args, self.held = args, json.load(open(args.ckpt))\n        self.model_id = self.held['id']\n",
    )
    .replace("if self.args.bad_golden:", "if self.held.get('bad'):")
    .replace("* 2\n", "* self.held['gain']\n")
    .replace("import argparse, os", "import argparse, json, os")
    .replace('"rows": len(rows)}', '"rows": len(rows), "label": f"pid {os.getpid()}"}')
    .replace('parser.add_argument("--load_gate"', 'parser.add_argument("--ckpt")\nparser.add_argument("--load_gate"')
)


class Reloadable(Tiny):
    """A tiny server whose model is a JSON file: {"id", "gain"}; "bad" fails the golden replay."""

    script_text, model_id = RELOADABLE, "m1"

    def __init__(self, folder: Path, *flags: str, ready: bool = True):
        self.ckpt, self.token = folder / "model.json", folder / "token"
        self.ckpt.write_text('{"id": "m1", "gain": 2}')
        self.token.write_text(TOKEN + "\n")
        super().__init__(folder, "--ckpt", str(self.ckpt), "--admin_token_file", str(self.token), *flags, ready=ready)

    def reload(self, wanted: object = None, token: str = TOKEN):
        body = b"" if wanted is None else json.dumps(wanted).encode()
        return self.ask("POST", "/admin/reload", body, {"Authorization": f"Bearer {token}"})

    def metrics(self) -> dict[str, float]:
        """{"name{labels}": value} of every sample."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
        return {f"{s.name}{{{','.join(f'{k}={v}' for k, v in sorted(s.labels.items()))}}}": s.value for s in samples}
