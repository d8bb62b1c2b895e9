"""python -m tests.bench.rollout --json

Simulates rollouts through the real judge and the real stages (common.rollout), one look after every request of the
candidate: healthy ones, and ones whose candidate is worse in one way from its first request on. Traffic: six classes,
0.5 % failed requests, log-normal latency with a median of 20 ms, 90 % right answers; every answer gets its label.
Prints what it finds; with --json the last line is one JSON object: `false_rollback_rate` and `reached_100_rate` of the
healthy, and for each fault the median of the candidate's requests until it was rolled back (`median_requests_*`; null
where that happened to less than half) and the share that was (`found_*`).
In parts: start with --keep FILE --part 1/4 to 4/4, at the same time or not, then once more with --keep FILE alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.cli import command_parser, number, run
from common.judge import Columns
from common.rollout import Plan, Rollout

CLASSES = 6
AHEAD = 64  # requests of the candidate that are drawn at once
MOST = 20_000  # requests of the candidate after which a rollout counts as stuck


@dataclass(frozen=True)
class Traffic:
    """What one arm's requests are like. shift: points that move from class 0 to class 1."""

    errors: float = 0.005
    latency_scale: float = 1.0
    latency_sigma: float = 0.5
    shift: float = 0.0
    accuracy: float = 0.9

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """(failed, latency in ms, class, confidence, wrong) of n requests."""
        mix = np.full(CLASSES, 1 / CLASSES)
        mix[:2] += (-self.shift, self.shift)
        latency = 20 * self.latency_scale * np.exp(self.latency_sigma * rng.standard_normal(n))
        label = np.searchsorted(np.cumsum(mix)[:-1], rng.random(n))
        return rng.random(n) < self.errors, latency, label, rng.random(n), rng.random(n) >= self.accuracy


HEALTHY = Traffic()
P99_UP = 0.5 + np.log(1.5) / 2.3263  # sigma at which the p99 is half as high again and the median stays
FAULTS = {
    "2pct": replace(HEALTHY, errors=0.02),
    "5pct": replace(HEALTHY, errors=0.05),
    "20pct": replace(HEALTHY, errors=0.2),
    "p99_latency": replace(HEALTHY, latency_sigma=P99_UP),
    "all_latency": replace(HEALTHY, latency_scale=1.5),
    "class_mix": replace(HEALTHY, shift=0.15),
    "accuracy": replace(HEALTHY, accuracy=0.85),
}


def simulate(candidate: Traffic, rng: np.random.Generator, folder: str, plan: Plan) -> tuple[str, int]:
    """(how it ended, requests of the candidate until then)."""
    rollout, seen = Rollout(Path(folder, f"{rng.integers(1 << 62)}.json"), {"stable": "a", "candidate": "b"}, plan), 0
    rollout.judge.known = {str(label): label for label in range(CLASSES)}
    while not rollout.ended and seen < MOST:
        share = rollout.share
        stable_each = rng.geometric(share, AHEAD) - 1
        stable, canary = HEALTHY.draw(int(stable_each.sum()), rng), candidate.draw(AHEAD, rng)
        ends = np.cumsum(stable_each)
        for i, (start, end) in enumerate(zip(ends - stable_each, ends, strict=True)):
            failed, latency, label, confidence, wrong = (
                np.append(s[start:end], c[i]) for s, c in zip(stable, canary, strict=True)
            )
            is_canary = np.arange(end - start + 1) == end - start
            rollout.take_columns(Columns(is_canary, failed.astype(int), latency, label, confidence), share)
            rollout.judge.take_labels(is_canary[~failed], wrong[~failed], share)
            seen += 1
            rollout.decide()
            if rollout.share != share:  # what was drawn for the old share is of no use
                break
    return rollout.status, seen


def seed_of(name: str, n: int, args: argparse.Namespace) -> list[int]:
    """Of the n-th rollout of a kind, in whatever order and process it is simulated."""
    return [args.seed, n] if name == "healthy" else [args.seed, 1, *name.encode(), n]


def ends_of(name: str, args: argparse.Namespace, folder: str, plan: Plan) -> list[tuple[str, int]]:
    """How each rollout of a kind ended; what --keep holds already is not simulated again."""
    of = [name, args.seed, plan.stage_requests]
    lines = Path(args.keep).read_text(encoding="utf-8").splitlines() if args.keep and Path(args.keep).exists() else []
    kept = {n: (status, seen) for *what, n, status, seen in map(json.loads, lines) if what == of}
    part, parts = args.part
    for n in range(part - 1, args.rollouts if name == "healthy" else args.faulty, parts):
        if n not in kept:
            candidate = HEALTHY if name == "healthy" else FAULTS[name]
            kept[n] = simulate(candidate, np.random.default_rng(seed_of(name, n, args)), folder, plan)
            if args.keep:
                with open(args.keep, "a", encoding="utf-8") as file:
                    file.write(json.dumps([*of, n, *kept[n]]) + "\n")
    return [kept[n] for n in sorted(kept)]


def healthy(args: argparse.Namespace, folder: str, plan: Plan) -> dict:
    """Rollouts of a candidate that is as good as stable."""
    ends = ends_of("healthy", args, folder, plan)
    status = [end for end, _ in ends]
    seen = [n for end, n in ends if end == "promoted"]
    return {
        "false_rollback_rate": status.count("rolled_back") / len(status),
        "reached_100_rate": status.count("promoted") / len(status),
        "stuck": status.count("running"),
        "median_requests_healthy": statistics.median(seen) if seen else None,
        "most_requests_healthy": max(seen, default=None),
        "rollouts": len(status),
    }


def faulty(name: str, args: argparse.Namespace, folder: str, plan: Plan) -> dict:
    """Rollouts of a candidate with one fault."""
    ends = ends_of(name, args, folder, plan)
    found = [seen if status == "rolled_back" else float("inf") for status, seen in ends]
    median = statistics.median(found)
    rate = sum(status == "rolled_back" for status, _ in ends) / len(ends)
    return {f"median_requests_{name}": median if median < float("inf") else None, f"found_{name}": rate}


def part(text: str) -> tuple[int, int]:
    """`type=` of --part: K/N."""
    k, n = (int(word) for word in text.split("/"))
    if not 1 <= k <= n:
        raise argparse.ArgumentTypeError(f"{text}: wanted K/N with K from 1 to N")
    return k, n


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    whole = number(int, 1)
    parser.add_argument("--rollouts", type=whole, default=2000, help="healthy rollouts")
    parser.add_argument("--faulty", type=whole, default=300, help="rollouts of each fault")
    parser.add_argument("--stage_requests", type=whole, default=Plan.stage_requests, help="as of the server")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated traffic")
    parser.add_argument("--keep", default="", help="file that keeps what was simulated, for the next start")
    parser.add_argument("--part", type=part, default="1/1", help="simulate every N-th rollout from the K-th on, K/N")
    parser.add_argument("--json", action=argparse.BooleanOptionalAction, default=False, help="end with one JSON object")
    args = parser.parse_args(argv)
    plan, figures, start = Plan(stage_requests=args.stage_requests), {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name in (*FAULTS, "healthy"):
            found = healthy(args, folder, plan) if name == "healthy" else faulty(name, args, folder, plan)
            print(f"{name}: {found}", flush=True)
            figures |= found
    figures |= {"faulty": args.faulty, "seconds": round(time.monotonic() - start, 1)}
    print(json.dumps(figures) if args.json else f"took {figures['seconds']} s")


if __name__ == "__main__":
    run(main)
