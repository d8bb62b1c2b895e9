"""python -m tests.bench.serve --json

Times our server beside mosec and LitServe (pip install -e '.[bench]') under the load of wrk (apt-get install wrk), on
this machine, in one run; then overloads it, crowds it, feeds it slow and wrong requests and restarts it under load.
Every server is asked on 127.0.0.1 and gets the same model and the same requests. The intent model has one torch thread
in all of them; the photo model torch's default, one a core, but for ours: half of the cores, decoding wants the rest.
Each server makes batches of 32 at most: mosec waits 10 ms for them (its default), LitServe 10 ms, through its fast
queue. Ours speaks HTTP in the process that holds the model; in `throughput` also beside it (--model_process), as both
peers always do: `in_server` marks the former there. Prints what it does; with --json the last line is one JSON object,
in which `skipped` says why a figure is null. Ratios are medians over rounds, in which the servers take turns; a timing
during which the machine's host took over 5 % of its cores is repeated, twice at most. A run takes 15 to 25 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.cli import UserError, command_parser, number, run
from common.model_slot import cores
from tests.bench import scenarios, stress
from tests.bench.launch import need_wrk
from tests.bench.scenarios import BATCH, Bench

SCENARIOS = {
    "throughput": scenarios.throughput,
    "one_connection": scenarios.one_connection,
    "photo": scenarios.photo,
    "ready": scenarios.ready,
    "overload": stress.overload,
    "crowd": stress.crowd,
    "slow_clients": stress.slow_clients,
    "neighbours": stress.neighbours,
    "restarts": stress.restarts,
}
SIZES = {  # flag: (default, in a toy run)
    "rounds": (5, 1),
    "timing_s": (3.0, 0.3),
    "seconds": (60.0, 1.0),
    "good": (10_000, 300),
    "restarts": (50, 1),
}


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parse(argv)
    if not args.toy:
        need_wrk()
    figures: dict = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(args, Path(folder), stack)
        for name in args.only:
            start = time.monotonic()
            print(f"{name}:", flush=True)
            figures |= SCENARIOS[name](bench)
            print(f"  took {time.monotonic() - start:.0f} s", flush=True)
        figures |= {"skipped": bench.skipped, "conditions": conditions(args)}
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags; a size that is not given depends on --toy."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--only", type=names, default=list(SCENARIOS), help=f"comma-separated, of {', '.join(SCENARIOS)} (default: all)"
    )
    whole, some = number(int, 1), number(float, 0.1)
    helps = {
        "rounds": (whole, "turns of each server; medians are reported"),
        "timing_s": (some, "seconds of one timing"),
        "seconds": (some, "seconds of overload"),
        "good": (whole, "good requests among wrong ones"),
        "restarts": (whole, "times that the server is stopped under load"),
    }
    for name, (kind, text) in helps.items():
        usual, toy = SIZES[name]
        add(f"--{name}", type=kind, help=f"{text} (default: {usual}, with --toy {toy})")
    add("--ckpt", default="", help="checkpoint of project_vision_cls for the photo server (default: one is trained)")
    add("--toy", action="store_true", help="a run of seconds, without peers and without wrk: does it work at all?")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="end with one JSON object")
    args = parser.parse_args(argv)
    for name, sizes in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, sizes[args.toy])
    return args


def names(text: str) -> list[str]:
    """The scenarios of --only."""
    found = text.split(",")
    if wrong := [name for name in found if name not in SCENARIOS]:
        raise UserError(f"--only {','.join(wrong)}: no such scenario; wanted some of {', '.join(SCENARIOS)}")
    return found


def conditions(args: argparse.Namespace) -> dict:
    """What a reader needs to judge the figures."""
    return {
        "machine": f"{cores()} cores, {platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "versions": {name: installed(name) for name in ("torch", "numpy", "pillow", "mosec", "litserve")},
        "python": platform.python_version(),
        "torch_threads": {"intent": 1, "photo": cores(), "photo_ours": max(1, cores() // 2)},
        "max_batch": BATCH,
        "sizes": {name: getattr(args, name) for name in SIZES},
    }


def installed(package: str) -> str | None:
    """Its version; None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    run(main)
