"""python -m common.registry runs --sort val_acc --highest_first

What a team keeps of its trainings, in plain files: data versions, runs, releases, and the gate between them.

    python -m common.registry data diff runs/vision data/vision       which files came, went, changed
    python -m common.registry runs best --metric val_acc
    python -m common.registry runs reproduce runs/vision              bit-equal weights, or what differs
    python -m common.registry register runs/vision                    vision@1
    python -m common.registry gate --candidate runs/vision --baseline production
    python -m common.registry promote vision@1                        vision@production, which serve --model takes

Reads runs/**/run.json; writes runs/registry. Exit status: 0; 1 for a no (data differ, gate or promotion refused,
weights not equal); 2 for a mistake in the command.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common import run_table
from common.cli import UserError, command_parser, run
from common.data_versions import compare, present, recorded, snapshot_of, told
from common.gate import gate
from common.history import RegistryError
from common.log import file_sha256
from common.measure import CODE, package_of
from common.mlflow_export import export
from common.releases import STORE, Releases
from common.reproduce import reproduce
from common.run_record import differences, find_runs, flat, lower_is_better, read_json, read_run


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parse(argv)
    try:
        sys.exit(args.do(args))
    except RegistryError as error:  # not a mistake in the command: the answer is no
        print(f"refused: {error}", file=sys.stderr)
        sys.exit(1)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """A command of one or two words, and its flags."""
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_data, add_runs, add_releases):
        add(commands)
    return parser.parse_args(argv)


def command(commands: argparse._SubParsersAction, name: str, do: object, text: str) -> argparse.ArgumentParser:
    """A further word with a help line; `do(args)` gives the exit status."""
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(do=do)
    return parser


def add_data(commands: argparse._SubParsersAction) -> None:
    """`data diff`."""
    data = commands.add_parser("data", help="compare data versions", description="compare data versions")
    diff = command(data.add_subparsers(metavar="diff", required=True), "diff", data_diff, "what differs from A to B")
    diff.add_argument("a", metavar="A", help="folder of a run, or of data")
    diff.add_argument("b", metavar="B", nargs="?", help="the same; left out: A's data as it lies there now")
    diff.add_argument("--verify", action="store_true", help="read every byte, also of files with an unchanged time")
    diff.add_argument("--json", action="store_true", help="one JSON object, with every name")


def add_runs(commands: argparse._SubParsersAction) -> None:
    """`runs` and what comes after it."""
    runs = command(commands, "runs", runs_list, "list and compare runs")
    add_list_flags(runs)
    runs.add_argument("--sort", default="started", help="value to sort by")
    runs.add_argument("--highest_first", action="store_true", help="turn the order round")
    runs.add_argument("--columns", default="", help="values to show, with commas, such as val_acc,config.lr")
    runs.add_argument("--json", action="store_true", help="one JSON list, with every value")
    more = runs.add_subparsers(metavar="diff|best|reproduce|export")
    diff = command(more, "diff", runs_diff, "what differs between two runs")
    diff.add_argument("a", metavar="A", help="folder of a run")
    diff.add_argument("b", metavar="B", help="folder of another")
    diff.add_argument("--json", action="store_true", help="one JSON object")
    best = command(more, "best", runs_best, "the run with the best value of a metric")
    best.add_argument("--metric", required=True, help="such as val_acc or test.accuracy; losses and errors: the lowest")
    add_list_flags(best)
    again = command(more, "reproduce", runs_reproduce, "train again from the record and compare the weights")
    again.add_argument("run", metavar="RUN", help="folder of a run")
    again.add_argument("--out", help="folder for the new run (default: RUN-again)")
    out = command(more, "export", runs_export, "copy runs to MLflow (extra: mlflow)")
    out.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    out.add_argument("--mlflow", metavar="URI", required=True, help="tracking server, such as http://localhost:5000")
    out.add_argument("--experiment", default="ml-e2e", help="experiment to put them in")


def add_list_flags(parser: argparse.ArgumentParser) -> None:
    """Which runs."""
    parser.add_argument("--root", action="append", help="folder that is searched for runs (default: runs)")
    parser.add_argument("--where", action="append", default=[], help="condition such as val_acc>0.8; may come again")


def add_releases(commands: argparse._SubParsersAction) -> None:
    """What changes or reads the registry."""
    register = command(commands, "register", do_register, "copy a run into the registry, as the next version")
    register.add_argument("run", metavar="RUN", help="folder of a run")
    promote = command(commands, "promote", do_promote, "let a stage point to a release that passed its gate")
    promote.add_argument("name", metavar="NAME", help="such as vision@3")
    promote.add_argument("--to", default="production", help="stage (default: production)")
    promote.add_argument("--override", default="", help="reason to promote without a passed gate; it is recorded")
    promote.add_argument("--policy", help="policy that the gate must have used (default: the project's gate.toml)")
    judge = command(commands, "gate", do_gate, "every check before a release; 1 and gate.json with every reason if not")
    judge.add_argument("--candidate", required=True, metavar="RUN", help="folder of a run")
    judge.add_argument("--baseline", default="production", help="stage whose release is the one to beat")
    judge.add_argument("--policy", help="bounds (default: the project's gate.toml)")
    back = command(commands, "rollback", do_rollback, "let a stage point to what it was before")
    back.add_argument("project", metavar="PROJECT", help="such as vision")
    back.add_argument("--to", default="production", help="stage (default: production)")
    back.add_argument("--reason", default="", help="words for the history")
    listed = command(commands, "list", do_list, "releases, stages, and with --history every change")
    listed.add_argument("--history", action="store_true", help="show the history too")
    listed.add_argument("--json", action="store_true", help="one JSON object")
    resolve = command(commands, "resolve", do_resolve, "verify a release and print its checkpoint")
    resolve.add_argument("name", metavar="NAME", help="such as vision@production, vision@3 or vision@latest")
    for parser in (register, promote, judge, back, listed, resolve):
        parser.add_argument("--store", default=STORE, help="folder of the registry")


def show(value: object) -> None:
    """As JSON."""
    print(json.dumps(value, indent=1))


def data_diff(args: argparse.Namespace) -> int:
    """1 where they differ."""
    if args.b is None:
        found = compare(recorded(args.a), present(args.a, args.verify))
    else:
        found = compare(snapshot_of(args.a), snapshot_of(args.b))
    show(found) if args.json else print("\n".join(told(found)))
    return int(not found["same"])


def chosen_runs(args: argparse.Namespace) -> list[dict]:
    """Of --root and --where; records that cannot be read are told on standard error."""
    runs, problems = find_runs(args.root or ["runs"])
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return run_table.kept(runs, args.where)


def runs_list(args: argparse.Namespace) -> int:
    """A table or a list."""
    runs = run_table.in_order(chosen_runs(args), args.sort, args.highest_first)
    if args.json:
        show([{**flat(run), "argv": run["argv"], "module": run["module"]} for run in runs])
    elif not runs:
        print("no runs; train one, or pass --root")
    else:
        print(run_table.table(runs, args.columns.split(",") if args.columns else run_table.columns(runs)))
    return 0


def runs_diff(args: argparse.Namespace) -> int:
    """Values, then data."""
    a, b = read_run(args.a), read_run(args.b)
    values, data = differences(a, b), compare(recorded(args.a), recorded(args.b))
    if args.json:
        show({"values": values, "data": data})
        return 0
    for name, (was, now) in values.items():
        print(f"{name}: {was} → {now}")
    print("data:", "\n  ".join(told(data)))
    return 0


def runs_best(args: argparse.Namespace) -> int:
    """Its folder alone on the first line, for scripts."""
    found = run_table.best(chosen_runs(args), args.metric)
    print(found["dir"])
    which = "lowest" if lower_is_better(args.metric) else "highest"
    print(f"{args.metric} {flat(found)[args.metric]:.6g}, the {which}", file=sys.stderr)
    return 0


def runs_reproduce(args: argparse.Namespace) -> int:
    """1 where the weights are not equal."""
    found = reproduce(args.run, args.out or f"{Path(args.run)}-again")
    print(f"the weights of {args.run} and {found['out']} are {'bit-equal' if found['equal'] else 'NOT equal'}")
    for line in found["differs"]:
        print(f"  {line}")
    return int(not found["equal"])


def runs_export(args: argparse.Namespace) -> int:
    """One MLflow run a run."""
    for folder in args.runs:
        print(f"{folder} → {export(folder, args.mlflow, args.experiment)}")
    return 0


def do_register(args: argparse.Namespace) -> int:
    """The name on the first line."""
    release = Releases(args.store).register(args.run)
    print(f"{release['project']}@{release['version']}")
    return 0


def do_promote(args: argparse.Namespace) -> int:
    """RegistryError, so 1, where it is refused."""
    store = Releases(args.store)
    policy = policy_of(args.policy, store.resolve(args.name)["project"])
    entry = store.promote(args.name, args.to, args.override, file_sha256(policy))
    print(f"{entry['project']}@{entry['stage']} is now {entry['project']}@{entry['version']}, {entry['sha256'][:12]}")
    if entry["refusals"]:
        print(f"overridden ({args.override}): {'; '.join(entry['refusals'])}")
    return 0


def policy_of(given: str | None, project: str) -> Path:
    """The file of a gate's bounds; UserError where it is not there."""
    path = Path(given) if given else CODE / package_of(project) / "gate.toml"
    if not path.is_file():
        raise UserError(f"{path}: no such file; pass --policy")
    return path


def do_gate(args: argparse.Namespace) -> int:
    """One line a check; 1 where one of them is not passed."""
    run_dir = Path(args.candidate)
    policy = policy_of(args.policy, read_json(run_dir / "best.json").get("project", ""))
    verdict = gate(run_dir, policy, Releases(args.store), args.baseline)
    for one in verdict["checks"]:
        print(f"{'ok' if one['passed'] else 'NO':3}{one['name']}{': ' * bool(one['reason'])}{one['reason']}")
    against = sum(not one["passed"] for one in verdict["checks"])
    told = (
        "passed" if verdict["passed"] else f"not passed, {against} of {len(verdict['checks'])} checks speak against it"
    )
    print(f"{told}; details: {run_dir}/gate.json")
    return int(not verdict["passed"])


def do_rollback(args: argparse.Namespace) -> int:
    """The stage as it was."""
    entry = Releases(args.store).rollback(args.project, args.to, args.reason)
    print(f"{args.project}@{args.to} is again {args.project}@{entry['version']}, {entry['sha256'][:12]}")
    return 0


def do_list(args: argparse.Namespace) -> int:
    """What is there."""
    store = Releases(args.store)
    releases, stages, history = store.all(), store.stages(), store.history.read()
    if args.json:
        show({"releases": releases, "stages": stages, **({"history": history} if args.history else {})})
        return 0
    for release in releases:
        project, version = release["project"], release["version"]
        held = [stage for stage, number in stages.get(project, {}).items() if number == version]
        print(f"{project}@{version}", release["sha256"][:12], release["utc"], release["run"], *held, sep="  ")
    for entry in history if args.history else []:
        said = {key: value for key, value in entry.items() if key not in ("files", "previous", "sha256")}
        print(json.dumps(said))
    return 0


def do_resolve(args: argparse.Namespace) -> int:
    """The verified file."""
    print(Releases(args.store).checkpoint(args.name))
    return 0


if __name__ == "__main__":
    run(main)
