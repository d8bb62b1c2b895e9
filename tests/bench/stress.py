"""How our server behaves when clients do not: overload, crowds, slow sockets, wrong requests, restarts under load.

figures = overload(bench)       # each scenario takes a Bench of tests.bench.scenarios and returns figures by name
"""

from __future__ import annotations

import math
import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.cli import UserError
from tests.bench.launch import load, resident_mb, result, slow_sockets, start_generator, stop
from tests.bench.scenarios import PHOTO_CLIENTS, Bench, in_turn, median, told, versus

TIMES = 5  # load over capacity
QUEUE = 256  # the default of --queue
PROMISE_S = 0.02  # a 429 comes within this time
PROBES_PER_S = 50  # of the requests, so many go through the generator that knows the latency of each status


def overload(bench: Bench) -> dict:
    """Five times what the server can do, in an open loop: answers a second beside its peak, time to a 429, memory."""
    servers = {"ours_photo": PHOTO_CLIENTS, "ours": 64}
    return {
        f"overload_{'photo' if 'photo' in name else 'intent'}": flooded(bench, name, n) for name, n in servers.items()
    }


def flooded(bench: Bench, name: str, clients: int) -> dict:
    """Figures of one server. As many connections as one needs that keeps the promise; what finds none free waits."""
    peak = median(in_turn(bench, [name], clients), name, "rps")
    rate, seconds = TIMES * peak, bench.args.seconds
    connections = QUEUE + math.ceil(rate * PROMISE_S)
    bodies = bench.photos()[0] if "photo" in name else bench.texts
    with bench.server(name) as server, watched_memory(server.process.pid) as memory:
        probe = start_generator(server, bodies, "--rate", PROBES_PER_S, "--connections", 128, "--seconds", seconds)
        flood = load(server.port, bodies, connections, seconds, rate - PROBES_PER_S, bench.wrk)
        probed = result(probe)
    statuses = {
        status: flood["statuses"].get(status, 0) + probed["statuses"].get(status, 0)
        for status in sorted(flood["statuses"] | probed["statuses"])
    }
    goodput = flood["rps"] + probed["statuses"].get("200", 0) / probed["seconds"]
    figures = {
        "peak_rps": peak,
        "goodput_rps": goodput,
        "goodput_vs_peak": goodput / peak if peak else None,
        "wanted_rps": rate,
        "offered_rps": flood["offered_rps"] + probed["sent"] / probed["seconds"],
        "connections": connections,
        "p99_ms_429": probed["p99_ms_by_status"].get("429"),
        "p99_ms_200": probed["p99_ms_by_status"].get("200"),
        "statuses": statuses,
        "other_5xx": sum(count for status, count in statuses.items() if status[0] == "5"),
        "broken": flood["broken"] + probed["broken"],
        "rss_mb": [round(memory[at], 1) for at in (0, len(memory) // 4, len(memory) // 2, -1)],
    }
    print(f"  {name}: {figures}", flush=True)
    return figures


@contextmanager
def watched_memory(pid: int) -> Iterator[list[float]]:
    """Samples of a server's memory in MB, two a second."""
    samples, ended = [resident_mb(pid)], threading.Event()

    def sample() -> None:
        while not ended.wait(0.5):
            samples.append(resident_mb(pid))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def crowd(bench: Bench) -> dict:
    """400 connections that send again at once, whatever the answer, beside 64."""
    rounds: dict[str, list[dict]] = {"64": [], "400": []}
    for _ in range(bench.args.rounds):
        for clients, figures in rounds.items():
            figures.append(bench.load("ours", int(clients)))
            told(f"{clients} connections", figures[-1])
    statuses = [figures["statuses"] for figures in rounds["400"]]
    return {
        "crowd_goodput_rps": median(rounds, "400", "rps"),
        "crowd_vs_peak": versus(rounds, "400", "64"),
        "crowd_5xx": sum(count for part in statuses for status, count in part.items() if status[0] == "5"),
        "crowd_broken": sum(figures["broken"] for figures in rounds["400"]),
    }


def slow_clients(bench: Bench) -> dict:
    """64 good clients alone, and beside silent sockets and sockets that send a byte a second."""
    idle, slow = (20, 10) if bench.args.toy else (1000, 200)
    rounds: dict[str, list[dict]] = {"quiet": [], "beside": []}
    for _ in range(bench.args.rounds):
        rounds["quiet"].append(bench.load("ours", 64))
        with bench.server("ours") as server, slow_sockets(server.port, idle, slow):
            rounds["beside"].append(bench.load("ours", 64))
        for name, figures in rounds.items():
            told(f"beside {idle} + {slow} sockets" if name == "beside" else name, figures[-1])
    failed = [sum(f["statuses"].values()) - f["statuses"].get("200", 0) + f["broken"] for f in rounds["beside"]]
    return {
        "quiet_p99_ms": median(rounds, "quiet", "p99_ms"),
        "slow_clients_p99_ms": median(rounds, "beside", "p99_ms"),
        "slow_clients_vs_quiet": versus(rounds, "beside", "quiet", "p99_ms"),
        "slow_clients_failed": sum(failed),
    }


def neighbours(bench: Bench) -> dict:
    """Every 16th request is wrong (no JSON, no text, or one that only the model finds wrong): what the others get."""
    figures: dict = {}
    for name in bench.present(["ours", "mosec", "litserve"]):
        with bench.server(name) as server:
            flags = ["--wrong", bench.wrong_texts, "--count", math.ceil(bench.args.good * 16 / 15)]
            done = result(start_generator(server, bench.texts, *flags, "--connections", 64, "--seconds", 300))
        end = "" if name == "ours" else f"_{name}"
        figures[f"good_requests{end}"] = done["good_answered"] + done["good_failed"]
        figures[f"good_failed{end}"] = done["good_failed"]
        figures[f"wrong_passed{end}"] = done["wrong_passed"]
        print(f"  {name}: {done['statuses']}, {done['good_failed']} good ones failed", flush=True)
    return figures


def restarts(bench: Bench) -> dict:
    """SIGTERM under load, again and again.

    A request is lost if all of it was sent before the signal, on an open connection, and no complete answer came.
    """
    rng, runs = random.Random(0), []
    for number in range(bench.args.restarts):
        runs.append(one_restart(bench, 0.5 + rng.random() / 2))
        if runs[-1]["lost"] or runs[-1]["exit"]:
            print(f"  restart {number}: {runs[-1]}", flush=True)
    return {
        "restarts": len(runs),
        "lost": sum(run["lost"] for run in runs),
        "answered": sum(run["answered"] for run in runs),
        "refused_503": sum(run["refused"] for run in runs),
        "cut_after_the_signal": sum(run["cut"] for run in runs),  # sent after it, so the client could not know
        "bad_exits": sum(run["exit"] != 0 for run in runs),
        "stop_s": statistics.median(run["stop_s"] for run in runs) if runs else None,
    }


def one_restart(bench: Bench, after_s: float) -> dict:
    """Start a server and a load of 20 lasting connections and 20 that connect for each request; stop the server."""
    with bench.fresh("ours") as server:
        flags = ["--connections", 40, "--fresh", 20, "--until_closed", "--seconds", 60]
        generator = start_generator(server, bench.texts, *flags)
        time.sleep(after_s)
        stopped_at = time.monotonic()
        status = stop(server.process)
        stop_s = time.monotonic() - stopped_at
        done = result(generator)
    if not done["statuses"].get("200"):
        raise UserError(
            f"no request was answered within {after_s:.2f} s before SIGTERM: {done}; the machine is too busy"
        )
    lost = sum(sent_at < stopped_at for sent_at in done["unanswered"])
    return {
        "lost": lost,
        "cut": len(done["unanswered"]) - lost,
        "answered": done["statuses"]["200"],
        "refused": done["statuses"].get("503", 0),
        "exit": status,
        "stop_s": stop_s,
    }
