"""python -m tests.bench.monitor --json

How often monitoring cries wolf, how soon it finds what it should, what it says of accuracy without labels, and what it
costs. Windows are of 500 requests and the policies are those that are shipped. Drift is injected into running servers:
into a tiny one always; into those of the projects for the run folders and data that are given, all others are left out.
Prints what it does; with --json the last line is one JSON object. A run with all of it takes about ten minutes; for the
timings the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from common.cli import command_parser, number, run
from tests.bench import monitor_accuracy, monitor_cost, monitor_drift

PARTS = {
    "false_alarms": monitor_drift.false_alarms,
    "detection": monitor_drift.detection,
    "accuracy": monitor_accuracy.accuracy,
    "cost": monitor_cost.cost,
    "webhook": monitor_cost.webhook,
}
SIZES = {  # flag: (default, in a toy run)
    "runs": (300, 2),
    "windows": (100, 5),
    "window": (500, 50),
    "rounds": (30, 1),
    "timing_s": (1.0, 0.5),
}


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--vision", type=Path, help="run folder of a vision model")
    add("--photos", type=Path, help="folder of its test photos, <class>/*.jpg; val lies beside it")
    add(
        "--intent",
        type=Path,
        help="run folder of an intent model (default, for the cost: a small one is made)",
    )
    add("--texts", type=Path, help="its test.jsonl")
    add("--korean", type=Path, help="run folder of a model for Korean texts")
    add("--korean_texts", type=Path, help="its test.jsonl; then --texts are the English ones that come in its place")
    add("--series", type=Path, help="run folder of a forecasting model")
    add("--csv", type=Path, help="the series it was trained on")
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    for name, (default, _) in SIZES.items():
        add(
            f"--{name}",
            type=number(type(default), 0),
            default=default,
            help=f"size of a part; {SIZES[name][1]} in a toy",
        )
    add("--toy", action=argparse.BooleanOptionalAction, default=False, help="small sizes, to see that it works")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="end with one JSON object")
    args = parser.parse_args(argv)
    if args.toy:
        vars(args).update({name: toy for name, (_, toy) in SIZES.items()})
    figures: dict = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name in args.only:
            start = time.monotonic()
            found = PARTS[name](args, Path(folder), stack)
            figures |= found
            print(f"{name} ({time.monotonic() - start:.0f} s): {json.dumps(found)}", flush=True)
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    run(main)
