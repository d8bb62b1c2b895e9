"""Two parts of tests.bench.monitor: what monitoring costs the intent server, and what a webhook in trouble does."""

from __future__ import annotations

import json
import operator
import os
import shutil
import socket
import statistics
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.launch import (
    Server,
    environment,
    free_port,
    load,
    python,
    quietly,
    resident_mb,
    running,
    steady,
    write_texts,
)

CONNECTIONS = 64
SMALL = ["--epochs", 1, "--dim", 32, "--channels", 64, "--hidden", 64]


def intent_run(args, folder: Path) -> Path:
    """The run folder that is given, or that of a small model for drawn texts."""
    run_dir = args.intent or folder / "intent"
    if not run_dir.exists():
        quietly(python("project_nlp_intent.synthetic", "--out", folder / "drawn"))
        train = ["--train_jsonl", folder / "drawn" / "train.jsonl", "--run_dir", run_dir]
        quietly(python("project_nlp_intent.train", *train, *SMALL))
    return run_dir


def start(stack: ExitStack, name: str, args, folder: Path, *flags: object) -> Server:
    command = ["project_nlp_intent.serve", "--ckpt", intent_run(args, folder) / "best.pt", "--port", 0]
    words = python(*command, "--max_batch", 64, *flags)
    return stack.enter_context(running(name, words, folder, environment(1), b""))


def cost(args, folder: Path, stack: ExitStack) -> dict:
    """Requests a second without monitoring over those with it, in turns, and the same of CPU time; memory.

    CPU time for a request is what stays comparable where other processes have their share of the machine.
    """
    bodies, wrk = write_texts(folder)[0], bool(shutil.which("wrk"))
    rates: dict[str, list[float]] = {"on": [], "off": []}
    spent, answered = {"on": 0.0, "off": 0.0}, {"on": 0, "off": 0}
    with ExitStack() as own:
        flags = {"on": (), "off": ("--policy", "off")}
        servers = {name: start(own, name, args, folder, *words) for name, words in flags.items()}
        pids = {name: server.process.pid for name, server in servers.items()}
        for server in servers.values():
            load(server.port, bodies, CONNECTIONS, max(1.0, args.timing_s), wrk=wrk)
        early = {name: resident_mb(pid) for name, pid in pids.items()}
        for turn in range(args.rounds):
            for name in list(servers) if turn % 2 else list(servers)[::-1]:
                before = cpu_seconds(pids[name])
                figures = load(servers[name].port, bodies, CONNECTIONS, args.timing_s, wrk=wrk)
                rates[name].append(figures["rps"])
                spent[name] += cpu_seconds(pids[name]) - before
                answered[name] += figures["statuses"]["200"]
        late = {name: resident_mb(pid) for name, pid in pids.items()}
    cpu = {name: 1e6 * spent[name] / answered[name] for name in spent}
    return {
        "serving_cost": statistics.median(map(operator.truediv, rates["off"], rates["on"])) - 1,
        "serving_cost_cpu": cpu["on"] / cpu["off"] - 1,
        "rps": {name: statistics.median(values) for name, values in rates.items()},
        "cpu_us_for_a_request": cpu,
        "memory_mb": late["on"] - late["off"],
        "memory_growth_mb": {name: late[name] - early[name] for name in late},
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; proc(5), fields 14 and 15 of stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def silent_port():
    """A port that takes connections and never says a word."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        yield silent.getsockname()[1]


def webhook(args, folder: Path, stack: ExitStack) -> dict:
    """p99 of servers whose alarms fire all the time, with a webhook that is dead or hangs, over that without one.

    Rounds of all three, in another order each; the ratio is the median of those of a round.
    """
    bodies, wrk = write_texts(folder)[0], bool(shutil.which("wrk"))
    policy = folder / "noisy.json"
    ring = {"threshold": 1e-4, "consecutive": 1, "cooldown_sec": 0}
    policy.write_text(json.dumps({"levels": {"lat_p95": ring}}))
    with silent_port() as port, ExitStack() as own:
        places = {"none": "", "dead": f"http://127.0.0.1:{free_port()}/", "hung": f"http://127.0.0.1:{port}/"}
        servers = {
            name: start(own, name, args, folder, "--policy", policy, *(("--webhook", url) if url else ()))
            for name, url in places.items()
        }
        tails: dict[str, list[float]] = {name: [] for name in servers}
        for turn in range(args.rounds):
            for name in [*list(servers)[turn % 3 :], *list(servers)[: turn % 3]]:
                run = lambda name=name: load(servers[name].port, bodies, 8, args.timing_s, wrk=wrk)  # noqa: E731
                tails[name].append(steady(run)["p99_ms"])
    found = {f"p99_ms_{name}": statistics.median(values) for name, values in tails.items()}
    for name in ("dead", "hung"):
        ratios = map(operator.truediv, tails[name], tails["none"])
        found[f"webhook_p99_ratio_{name}"] = statistics.median(ratios)
    return found
