"""Servers, load generators and what they need, as processes and files of a benchmark.

    with running("ours", intent_command(), folder) as server:        # stopped by SIGTERM at the end
        figures = load(server.port, bodies, connections=64, seconds=5)   # wrk, or the generator in tests.bench.loads

Writes logs, bodies and photos under the folder it is given. Everything listens on 127.0.0.1.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.cli import UserError
from tests.bench.intent_app import POISON, make_texts

ROOT = Path(__file__).parent.parent.parent
START_S, STOP_S = 120, 30  # longest start and end of a server
STOLEN_AT_MOST = 0.05
WRK_HELP = "wrk is not installed: apt-get install wrk (Debian), brew install wrk (macOS); or pass --toy to do without"


@dataclass
class Server:
    """A running server; `ready_s` is the time from its start until it said that it is ready, or answered."""

    process: subprocess.Popen
    port: int
    ready_s: float


def python(*words: object) -> list[str]:
    """The command line of a module."""
    return [sys.executable, "-m", *map(str, words)]


def shown(*words: object) -> None:
    """Run a module, and show what it prints. Raises UserError where it fails (it has said why)."""
    line = f"python -m {shlex.join(map(str, words))}"
    print(f"$ {line}", flush=True)
    if status := subprocess.run(python(*words)).returncode:
        raise UserError(f"{line} ended with status {status}, wanted 0")


def environment(threads: int, **more: str) -> dict[str, str]:
    """For a process with so many torch threads."""
    count = str(threads)
    return {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def running(name: str, command: list[str], folder: Path, env: dict[str, str], body: bytes) -> Iterator[Server]:
    """Start a server, wait until it is ready, stop it at the end.

    `{port}` in the command asks for a port to be chosen, and for `body` to be sent until there is an answer; a command
    without it is one of ours, which names its port and says when it is ready.
    """
    chosen = free_port() if "{port}" in command else 0
    handle, log = tempfile.mkstemp(".log", f"{name}-", folder)
    log = Path(log)
    start = time.monotonic()
    with open(handle, "wb") as output:
        words = [str(chosen) if word == "{port}" else word for word in command]
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=folder, start_new_session=True
        )
    try:
        port = 0
        while not port:
            if process.poll() is not None or time.monotonic() - start > START_S:
                raise UserError(f"{name} did not start ({' '.join(words)}); the end of its log: {tail(log)}")
            time.sleep(0.005)
            if chosen:
                port = chosen if answers(chosen, body) else 0
            elif found := re.search(r"listening on http://\S*:(\d+)[\s\S]*^ready", log.read_text(), re.MULTILINE):
                port = int(found[1])
        yield Server(process, port, time.monotonic() - start)
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> int:
    """End a server by SIGTERM to its process; what is left of its group after `STOP_S` is killed. Its exit status."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} still runs {STOP_S} s after SIGTERM: killed", file=sys.stderr)
    try:
        os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own: only what it started is in the group
    except ProcessLookupError:
        return process.returncode
    return process.wait()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def answers(port: int, body: bytes) -> dict | None:
    """The answer to one request; None where it is not a 200, or nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        return json.loads(text) if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def tail(path: Path) -> str:
    """The last lines of a log, on one line."""
    return " | ".join(path.read_text(errors="replace").splitlines()[-5:]) or "(empty)"


def load(port: int, bodies: Path, connections: int, seconds: float, rate: float = 0, wrk: bool = True) -> dict:
    """Figures of a load on all `connections`: closed loop, or open loop with a `rate` in requests a second.

    rps (answers 200 a second), offered_rps, seconds, p50_ms, p99_ms, statuses {"200": n}, broken (without an answer).
    """
    if wrk:
        url, script = f"http://127.0.0.1:{port}/predict", str(ROOT / "tests/bench/wrk.lua")
        flags = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", script]
        done = finished(["wrk", *flags, url, "--", str(bodies), str(rate)])
    else:
        flags = ["--port", port, "--bodies", bodies, "--connections", connections, "--seconds", seconds, "--rate", rate]
        done = finished(python("tests.bench.loads", *flags))
    return done | {
        "rps": done["statuses"].get("200", 0) / done["seconds"],
        "offered_rps": done["sent"] / done["seconds"],
    }


def steady(measure: Callable[[], dict], turns: int = 3) -> dict:
    """Figures of the first turn that was not disturbed, or of the least disturbed one.

    `stolen` is the share of all cores that the host of a virtual machine gave to others meanwhile.
    """
    taken = []
    while len(taken) < turns and (not taken or taken[-1]["stolen"] > STOLEN_AT_MOST):
        before = _ticks()
        figures = measure()
        after = _ticks()
        passed = sum(after) - sum(before)
        taken.append(figures | {"stolen": round((after[7] - before[7]) / passed, 3) if passed else 0.0})
    return min(taken, key=lambda figures: figures["stolen"])


def _ticks() -> list[int]:
    """Time of all cores by kind, as in proc(5); the eighth is stolen. Zeros where that is not told."""
    try:
        return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return [0] * 8


def start_generator(server: Server, bodies: Path, *flags: object) -> subprocess.Popen:
    """The generator in Python, in the background; `result` waits for its figures."""
    command = python("tests.bench.loads", "--port", server.port, "--bodies", bodies, *flags)
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(1), text=True, cwd=ROOT)


def result(process: subprocess.Popen) -> dict:
    """The JSON object on the last line of a process that was started with its output in a pipe."""
    output, _ = process.communicate()
    if process.returncode:
        raise UserError(f"{' '.join(map(str, process.args))} ended with status {process.returncode}, wanted 0")
    return json.loads(output.splitlines()[-1])


def finished(command: list[str], threads: int = 1) -> dict:
    """Run a command to its end; the JSON object on its last line."""
    return result(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(threads), text=True, cwd=ROOT))


def need_wrk() -> None:
    """Raises UserError, saying how to install it, where wrk is missing."""
    if not shutil.which("wrk"):
        raise UserError(WRK_HELP)


@contextmanager
def slow_sockets(port: int, idle: int, slow: int) -> Iterator[None]:
    """Hold `idle` silent connections, and `slow` ones that send a byte a second; what the server cuts comes back."""
    request = b"POST /predict HTTP/1.1\r\nHost: bench\r\nX-Slow: " + b"a" * 2000
    ended = threading.Event()
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(idle)]
    slow_ones = [socket.create_connection(("127.0.0.1", port)) for _ in range(slow)]

    def trickle() -> None:
        at = 0
        while not ended.wait(1.0):
            for number, client in enumerate(slow_ones):
                try:
                    client.send(request[at % len(request) :][:1])
                except OSError:
                    client.close()
                    slow_ones[number] = socket.create_connection(("127.0.0.1", port))
            at += 1

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for client in silent + slow_ones:
            client.close()


def resident_mb(pid: int) -> float:
    """Memory of a process and of all that it started, in MB."""
    total, waiting = 0, [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            found = re.search(r"VmRSS:\s+(\d+) kB", (folder / "status").read_text())
            waiting += [
                int(child) for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()
            ]
        except OSError:
            continue  # it ended meanwhile
        total += int(found[1]) if found else 0
    return total / 1000


def write_texts(folder: Path) -> tuple[Path, Path]:
    """Files of good and of wrong bodies for the intent model, one a line."""
    good, wrong = folder / "texts.jsonl", folder / "wrong_texts.jsonl"
    good.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(512)))
    wrong.write_text('{"text": 7}\n{"text": "\n' + json.dumps({"text": POISON}) + '\n{"text": ""}\n{"txt": "hello"}\n')
    return good, wrong


def write_photos(folder: Path, ckpt: str, toy: bool) -> tuple[Path, str]:
    """(file of bodies with JPEG photos of some 300 to 500 pixels, checkpoint): both are made, unless one is given."""
    photos, run_dir = folder / "photos", folder / "vision"
    train, val, size = (1, 0 if ckpt else 3, 96) if toy else (12, 0 if ckpt else 3, 400)
    words = ["--train", train, "--val", val, "--test", 0, "--size", size, "--vary", 0.25]
    quietly(python("project_vision_cls.synthetic", "--out", photos, *words))
    if not ckpt:
        few = ["--train_root", photos / "val", "--val_fraction", 0.34, "--cache_dir", folder / "cache"]
        quietly(python("project_vision_cls.train", *few, "--epochs", 1, "--bs", 4, "--run_dir", run_dir))
    bodies = folder / "photos.jsonl"
    texts = [base64.b64encode(photo.read_bytes()).decode() for photo in sorted(photos.glob("train/*/*.jpg"))]
    bodies.write_text("".join(json.dumps({"image_base64": text}) + "\n" for text in texts))
    return bodies, str(Path(ckpt).absolute()) if ckpt else str(run_dir / "best.pt")


def quietly(command: list[str]) -> None:
    done = subprocess.run(command, env=environment(os.cpu_count() or 1), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-500:]}")
