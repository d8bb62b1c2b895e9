"""python -m tests.bench.rollout_server --json

What a rollout costs a running server. `shadow_p50_ratio`, `shadow_p99_ratio`: latency of the stable arm with a shadow
beside it, over that without, in rounds that take turns (medians; photos of 400 pixels at a fixed rate).
`beside_p50_ratio`, `beside_p99_ratio`: the same of a server without a shadow, while another process on these cores
serves the same load, so what any such work costs on this machine.
`agree_s`: the time from an order (hold, resume) until all of `--workers` processes report its state (median and most).
With --json the last line is one JSON object. Makes a small photo model; run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from common.amp_ckpt import load_ckpt, save_ckpt
from common.cli import command_parser, number, run
from common.rollout import ask
from tests.bench.launch import environment, load, python, result, running, start_generator, write_photos

STARTS_S = 1.0  # a load generator has begun by then


def shadow(args: argparse.Namespace, folder: Path, bodies: Path, models: list[str]) -> dict:
    """Latencies of servers that take turns: one with a shadow; one without, alone and with a third one beside it."""
    plain, candidate = models
    rates: dict[str, list[dict]] = {"plain": [], "beside": [], "shadow": []}
    body = bodies.read_bytes().splitlines()[0]
    with ExitStack() as stack:
        servers = {}
        for name, more in (("plain", []), ("other", []), ("shadow", ["--shadow", "--canary", candidate])):
            words = ["--ckpt", plain, "--port", 0, "--rollout_state", folder / f"{name}.json", *more]
            command = python("project_vision_cls.serve", *words)
            servers[name] = stack.enter_context(running(name, command, folder, environment(1), body))

        def measured(name: str) -> dict:
            return load(servers[name].port, bodies, 8, args.seconds, args.rate, wrk=False)

        for _ in range(args.rounds + 1):  # the first one warms up
            rates["plain"].append(measured("plain"))
            flags = ["--rate", args.rate, "--connections", 8, "--seconds", args.seconds + 2 * STARTS_S]
            other = start_generator(servers["other"], bodies, *flags)
            time.sleep(STARTS_S)
            rates["beside"].append(measured("plain"))
            result(other)
            rates["shadow"].append(measured("shadow"))
        pairs = ask(f"http://127.0.0.1:{servers['shadow'].port}", "status")["guardrails"]["disagreement"]["canary"]["n"]
    found = {"shadow_compared": pairs, "rate": args.rate}
    for what in ("p50_ms", "p99_ms"):
        times = {name: [one[what] for one in figures[1:]] for name, figures in rates.items()}
        found |= {f"{name}_{what}": statistics.median(some) for name, some in times.items()}
        for name in ("beside", "shadow"):
            ratios = [b / a for a, b in zip(times["plain"], times[name], strict=True)]
            found[f"{name}_{what[:3]}_ratio"] = statistics.median(ratios)
    return found


def agree(args: argparse.Namespace, folder: Path, body: bytes, models: list[str]) -> dict:
    """Seconds until the metrics of all workers have the state that was ordered."""
    token = secrets.token_hex(16)
    (folder / "token").write_text(token)
    words = ["--ckpt", models[0], "--canary", models[1], "--port", 0, "--workers", args.workers]
    words += ["--rollout_state", folder / "agree.json", "--admin_token_file", folder / "token"]
    times = []
    with running("workers", python("project_vision_cls.serve", *words), folder, environment(1), body) as server:
        url = f"http://127.0.0.1:{server.port}"
        _seen(url, "running", args.workers)
        for _ in range(args.orders):
            for verb, status in (("hold", "held"), ("resume", "running")):
                start = time.monotonic()
                ask(url, verb, token)
                _seen(url, status, args.workers)
                times.append(time.monotonic() - start)
    return {"workers": args.workers, "agree_s": statistics.median(times), "agree_most_s": max(times)}


def _seen(url: str, status: str, workers: int) -> None:
    wanted = f'rollout_status{{status="{status}"}} {workers}\n'
    while True:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            if wanted in answer.read().decode():
                return


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    whole = number(int, 1)
    parser.add_argument("--rounds", type=whole, default=7, help="rounds of each server")
    parser.add_argument("--seconds", type=whole, default=4, help="length of a round")
    parser.add_argument("--rate", type=whole, default=60, help="photos a second")
    parser.add_argument("--workers", type=whole, default=3, help="processes that have to agree")
    parser.add_argument("--orders", type=whole, default=10, help="times hold and resume")
    parser.add_argument("--json", action=argparse.BooleanOptionalAction, default=False, help="end with one JSON object")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bodies, plain = write_photos(folder, "", toy=False)
        candidate = str(folder / "candidate.pt")
        save_ckpt(candidate, {**load_ckpt(plain), "extra": "the same model, another file"})
        found = shadow(args, folder, bodies, [plain, candidate])
        found |= agree(args, folder, bodies.read_bytes().splitlines()[0], [plain, candidate])
    found = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
    print(json.dumps(found) if args.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    run(main)
