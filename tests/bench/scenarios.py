"""How fast: our server beside mosec and LitServe, and beside what the model does alone.

    figures = throughput(bench)     # each scenario takes a Bench and returns figures by name

Rates and latencies are medians over rounds, in which the servers take turns and only the one under test has work.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.cli import UserError
from common.model_slot import cores
from common.server_microbatch import add_server_flags
from tests.bench.launch import (
    Server,
    answers,
    environment,
    finished,
    load,
    python,
    running,
    steady,
    write_photos,
    write_texts,
)

BATCH = 32  # most rows in a forward pass of any server
PHOTO_CLIENTS = 32
RESTLESS = "litserve"  # polls its queue when idle, at up to a tenth of a core: runs only while it is under test


@dataclass
class Bench:
    """What the scenarios share: flags, files, and servers that stay up until `stack` closes."""

    args: argparse.Namespace
    folder: Path
    stack: ExitStack
    skipped: dict[str, str] = field(default_factory=dict)  # figure: why it is not there
    servers: dict[str, Server] = field(default_factory=dict)

    def __post_init__(self):
        self.wrk, self.turns = not self.args.toy, 1 if self.args.toy else 3
        self.cores = cores()
        self.texts, self.wrong_texts = write_texts(self.folder)

    def photos(self) -> tuple[Path, str]:
        """(bodies, checkpoint), made once."""
        if not hasattr(self, "_photos"):
            self._photos = write_photos(self.folder, self.args.ckpt, self.args.toy)
        return self._photos

    @contextmanager
    def server(self, name: str) -> Iterator[Server]:
        """The server of this name, running; names end in _photo for photos, in _2 for two workers, and in _apart for a
        model in a process of its own."""
        if RESTLESS in name:
            with self.fresh(name) as server:
                yield server
        else:
            if name not in self.servers:
                self.servers[name] = self.stack.enter_context(self.fresh(name))
            yield self.servers[name]

    def fresh(self, name: str):
        """A context manager: a server of its own, stopped when the context ends."""
        photo = "photo" in name
        bodies, ckpt = self.photos() if photo else (self.texts, "")
        body = bodies.read_bytes().splitlines()[0]
        env = environment(self.cores if photo else 1, BENCH_CKPT=ckpt)
        return running(name, command(name, ckpt), self.folder, env, body)

    def load(self, name: str, connections: int) -> dict:
        """Warm up, then measure a closed loop."""
        bodies = self.photos()[0] if "photo" in name else self.texts
        with self.server(name) as server:
            load(server.port, bodies, connections, min(1, self.args.timing_s), wrk=self.wrk)
            return steady(lambda: load(server.port, bodies, connections, self.args.timing_s, wrk=self.wrk), self.turns)

    def present(self, names: list[str]) -> list[str]:
        """Those that can run here; the others are noted in `skipped`."""
        for name in names:
            if reason := self.missing(name):
                self.skipped[name] = reason
        return [name for name in names if not self.missing(name)]

    def missing(self, name: str) -> str:
        """Why a server cannot run here; empty if it can."""
        package = name.partition("_")[0]
        if self.args.toy and name not in ("ours", "ours_apart", "ours_photo"):
            return "not in a toy run"
        if package == "ours":
            return "add_server_flags offers no --workers" if name.endswith("_2") and not has_workers_flag() else ""
        return "" if importlib.util.find_spec(package) else f"{package} is not installed: pip install -e '.[bench]'"


def command(name: str, ckpt: str) -> list[str]:
    """The command line that starts a server."""
    package = name.partition("_")[0]
    workers = 2 if name.endswith("_2") else 1
    if package == "mosec":
        flags = ["--num", workers, "--max_batch", BATCH, "--address", "127.0.0.1", "--log-level", "warning"]
        return python("tests.bench.mosec_app", "--port", "{port}", *flags)
    if package == "litserve":
        return python("tests.bench.litserve_app", "--port", "{port}", "--max_batch", BATCH)
    module = ["project_vision_cls.serve", "--ckpt", ckpt] if ckpt else ["tests.bench.intent_app"]
    more = ["--workers", 2] if workers == 2 else []
    more += ["--model_process", "--decode_threads", 1] if name.endswith("_apart") else []
    more += ["--threads", max(1, cores() // 2)] if ckpt else []  # what it takes by itself, without $OMP_NUM_THREADS
    return python(*module, "--port", 0, "--max_batch", BATCH, *more)


def has_workers_flag() -> bool:
    parser = argparse.ArgumentParser()
    add_server_flags(parser, 8080)
    return "--workers" in parser.format_help()


def in_turn(bench: Bench, names: list[str], connections: int) -> dict[str, list[dict]]:
    """Figures of each server, one entry a round."""
    rounds: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(bench.args.rounds):
        for name in names:
            figures = bench.load(name, connections)
            rounds[name].append(figures)
            told(name, figures)
    return rounds


def told(name: str, figures: dict) -> None:
    """One line about one timing."""
    speed = f"{figures['rps']:.0f} req/s, p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms"
    print(f"  {name}: {speed}, {figures['statuses']}, {figures['stolen']:.0%} stolen", flush=True)


def median(rounds: dict[str, list[dict]], name: str, key: str) -> float | None:
    """Over the rounds of a server; None where it did not run."""
    return statistics.median(figures[key] for figures in rounds[name]) if rounds.get(name) else None


def versus(rounds: dict[str, list[dict]], name: str, other: str, key: str = "rps") -> float | None:
    """Median over the rounds of one server's figure over another's in the same round; None where one did not run."""
    pairs = zip(rounds.get(name, []), rounds.get(other, []), strict=False)
    ratios = [figures[key] / others[key] for figures, others in pairs]
    return statistics.median(ratios) if ratios else None


def same_answers(bench: Bench, names: list[str]) -> None:
    """Raises UserError where two servers do not give the same class for the same text."""
    bodies = bench.texts.read_bytes().splitlines()[:4]
    preds = {}
    for name in names:
        with bench.server(name) as server:
            preds[name] = [(answers(server.port, body) or {}).get("pred") for body in bodies]
    if len({tuple(pred) for pred in preds.values()}) != 1:
        raise UserError(f"the servers do not agree on {len(bodies)} texts: {preds}; wanted the same model in all")


def throughput(bench: Bench) -> dict:
    """The intent model, 64 connections: answers a second and p99; of ours with the model apart, and in the server."""
    names = bench.present(["ours_apart", "ours", "mosec", "litserve", "ours_2", "mosec_2"])
    same_answers(bench, names)
    rounds = in_turn(bench, names, 64)
    return {
        "rps": median(rounds, "ours_apart", "rps"),
        "rps_in_server": median(rounds, "ours", "rps"),
        "rps_mosec": median(rounds, "mosec", "rps"),
        "rps_litserve": median(rounds, "litserve", "rps"),
        "rps_2_workers": median(rounds, "ours_2", "rps"),
        "rps_mosec_2": median(rounds, "mosec_2", "rps"),
        "vs_mosec": versus(rounds, "ours_apart", "mosec"),
        "vs_mosec_in_server": versus(rounds, "ours", "mosec"),
        "vs_litserve": versus(rounds, "ours_apart", "litserve"),
        "vs_mosec_2_workers": versus(rounds, "ours_2", "mosec"),
        "vs_mosec_2_each": versus(rounds, "ours_2", "mosec_2"),
        "p50_ms": median(rounds, "ours_apart", "p50_ms"),
        "p99_ms": median(rounds, "ours_apart", "p99_ms"),
        "p99_ms_in_server": median(rounds, "ours", "p99_ms"),
        "p99_ms_mosec": median(rounds, "mosec", "p99_ms"),
        "p99_ms_litserve": median(rounds, "litserve", "p99_ms"),
        "p99_ms_2_workers": median(rounds, "ours_2", "p99_ms"),
        "broken": sum(figures["broken"] for name in ("ours", "ours_apart") for figures in rounds[name]),
        "stolen": round(statistics.median(figures["stolen"] for part in rounds.values() for figures in part), 3),
    }


def one_connection(bench: Bench) -> dict:
    """The intent model and a lone client, beside one forward pass for one item; the model alone at its best batch."""
    rounds = in_turn(bench, bench.present(["ours", "mosec", "litserve"]), 1)
    alone = limits(bench, bench.texts, "", 1)
    p50 = median(rounds, "ours", "p50_ms")
    return {
        "p50_ms_1_connection": p50,
        "p50_ms_1_connection_mosec": median(rounds, "mosec", "p50_ms"),
        "p50_ms_1_connection_litserve": median(rounds, "litserve", "p50_ms"),
        "model_ms_1_item": alone["model_ms_1_item"],
        "ms_beside_model": p50 - alone["model_ms_1_item"],
        "model_rps_alone": alone["items_per_s"],
    }


def limits(bench: Bench, bodies: Path, ckpt: str, threads: int) -> dict:
    """What tests.bench.limits says of decode and the model without a server."""
    flags = ["--bodies", bodies, "--ckpt", ckpt, "--threads", threads, "--seconds", bench.args.timing_s / 5]
    return steady(lambda: finished(python("tests.bench.limits", *flags), threads), bench.turns)


def photo(bench: Bench) -> dict:
    """JPEG photos of 300 to 500 pixels in base64, 32 connections, beside decode + model alone on the same cores."""
    names = bench.present(["ours_photo", "mosec_photo", "litserve_photo"])
    bodies, ckpt = bench.photos()
    rounds: dict[str, list[dict]] = {name: [] for name in ["alone", *names]}
    for _ in range(bench.args.rounds):
        alone = limits(bench, bodies, ckpt, bench.cores)
        rounds["alone"].append(alone | {"rps": alone["items_per_s"]})
        print(f"  decode + model alone: {alone}", flush=True)
        for name in names:
            rounds[name].append(bench.load(name, PHOTO_CLIENTS))
            told(name, rounds[name][-1])
    return {
        "photo_rps": median(rounds, "ours_photo", "rps"),
        "photo_limit": median(rounds, "alone", "rps"),
        "photo_limit_batch": rounds["alone"][-1]["batch"],
        "photo_vs_limit": versus(rounds, "ours_photo", "alone"),
        "photo_vs_litserve": versus(rounds, "ours_photo", "litserve_photo"),
        "photo_vs_mosec": versus(rounds, "ours_photo", "mosec_photo"),
        "photo_p99_ms": median(rounds, "ours_photo", "p99_ms"),
        "photo_p99_ms_litserve": median(rounds, "litserve_photo", "p99_ms"),
    }


def ready(bench: Bench) -> dict:
    """Seconds from the start of our process until it is ready, and how much of that is not `import torch`."""
    whole, imports = [], []
    for _ in range(bench.args.rounds):
        imports.append(import_s())
        with bench.fresh("ours") as server:
            whole.append(server.ready_s)
    return {
        "ready_s": statistics.median(whole),
        "import_torch_s": statistics.median(imports),
        "ready_s_beyond_import": statistics.median(whole) - statistics.median(imports),
    }


def import_s() -> float:
    """Seconds until a new Python has imported torch."""
    start = time.monotonic()
    words = [sys.executable, "-c", "import torch; print(flush=True)"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment(1)) as process:
        process.stdout.readline()
        return time.monotonic() - start
