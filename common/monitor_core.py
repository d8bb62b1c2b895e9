"""python -m common.monitor_core --log runs/vision/requests.jsonl --ckpt runs/vision/best.pt --out drift.html

The checks of a running server on its request log: windows against the checkpoint's reference, alarms in the order of
their time. Reads the logs, the checkpoint and a policy; writes --out, a page (.html) or all there is (.json).

In Python, what a running model is watched with:

    window = SlidingWindow(512)
    window.push(12.5)
    alarms = AlarmManager().add(Alarm("lat_p95", threshold=120.0, direction=">=", min_samples=100, consecutive=3))
    fired = alarms.run({"lat_p95": (window.quantile(0.95), len(window))})   # [] or the events that fired
    psi(reference, sample), ks(reference, sample), mmd(embedded, sample)
"""

from __future__ import annotations

import json
from pathlib import Path

from common.alarms import Alarm as Alarm
from common.alarms import AlarmManager as AlarmManager
from common.cli import UserError, command_parser, run
from common.drift import holm as holm
from common.drift import ks as ks
from common.drift import psi as psi
from common.mmd import mmd as mmd
from common.window import SlidingWindow as SlidingWindow


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    # here: the servers import this module, and want nothing of what the command needs
    from common.amp_ckpt import load_ckpt, replace_file
    from common.dashboard import report
    from common.log import file_sha256
    from common.measure import CODE, package_of
    from common.offline import drifted, page_data, replay
    from common.policy import read_policy

    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--log", nargs="+", default=["runs/vision/requests.jsonl"], help="request logs of one model, oldest first")
    add("--ckpt", default="runs/vision/best.pt", help="checkpoint that was served")
    add("--policy", help="JSON file that says what is watched (default: that of the checkpoint's project)")
    add("--out", default="runs/vision/drift.html", help="where the report goes: .html or .json")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.suffix not in (".html", ".json"):
        raise UserError(f"--out {out}: wanted a name that ends in .html or .json")
    ckpt = load_ckpt(args.ckpt)
    policy = read_policy(args.policy or CODE / package_of(ckpt["project"]) / "monitoring.json")
    found = replay(args.log, ckpt, file_sha256(args.ckpt)[:12], policy)
    text = report(page_data(found, ckpt, policy)) if out.suffix == ".html" else json.dumps(found, indent=1) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, lambda file: file.write(text.encode()))
    windows = f"{len(found['windows'])} windows of {policy['window']}"
    print(f"{found['requests']} requests of model {found['model_id']}, {windows}")
    for feature, times in drifted(found).items():
        print(f"drifted: {feature}, in {times} of them")
    others = sum(found["lines_of_other_models"].values())
    print(f"lines of other models: {others}, unreadable: {found['lines_unreadable']}")
    print(f"not checked: {', '.join(found['not_checked']) or 'nothing'}")
    print(f"→ {out}")


if __name__ == "__main__":
    run(main)
