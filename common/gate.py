"""Whether a run may be released: every check, with what was found and every reason against it.

    verdict = gate(Path("runs/vision"), Path("project_vision_cls/gate.toml"), Releases("runs/registry"), "production")
    verdict["passed"], [check for check in verdict["checks"] if not check["passed"]]

Reads the run folder and the registry; repeats the evaluation of the candidate, and that of the incumbent on the same
examples; starts the candidate's server and asks it. Writes `gate.json` to the run folder, and its hash to the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from common import gate_integrity
from common.cli import UserError
from common.data_versions import compare, present, read_manifest, recorded, told
from common.gate_policy import BOUNDS, at, broken, read_policy
from common.generate_model_card import card_problems
from common.log import file_sha256
from common.measure import ask_server, evaluate_again, package_of
from common.paired import compare_rows
from common.releases import CHECKPOINT, Releases, release_files
from common.run_record import host, read_json, read_run, scalars, write_json

SAME = 1e-3  # how far a repeated score may lie from the recorded one, absolute and relative: kernels differ a little


def gate(run_dir: Path, policy_path: Path, store: Releases, stage: str) -> dict[str, Any]:
    """Run every check, write gate.json and record it; see the module's docstring. UserError for a wrong policy."""
    policy = read_policy(policy_path)
    test_set = policy["test_set"]
    checks = [reasons(name, find, run_dir, test_set) for name, find in gate_integrity.INTEGRITY.items()]
    whole = all(check["passed"] for check in checks)
    try:
        project, files = read_json(run_dir / "best.json").get("project"), release_files(run_dir)
    except UserError as error:
        project, files = None, {}
        checks.append(check("release", str(error)))
    incumbent = incumbent_of(store, project, stage) if project else None
    if whole:
        checks += measured(run_dir, policy, files, store, incumbent)
    else:
        checks.append(check("measurements", "not taken: the files are not what they say"))
    checks += [reasons(name, find, run_dir, policy) for name, find in FROM_FILES.items()]
    if files and release_files(run_dir) != files:
        checks.append(check("files at the end", f"{run_dir} was changed while the gate ran"))
    verdict = {
        "passed": all(one["passed"] for one in checks),
        "project": project,
        "sha256": files.get(CHECKPOINT),
        "baseline": incumbent["sha256"] if incumbent else None,
        "stage": stage,
        "utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "policy": {
            "file": str(policy_path),
            "sha256": file_sha256(policy_path),
            "text": policy_path.read_text("utf-8"),
        },
        "host": host(),
        "files": files,
        "checks": checks,
    }
    write_json(run_dir / "gate.json", verdict)
    if project and files:
        store.record_gate(run_dir / "gate.json", verdict)
    return verdict


def check(name: str, reason: str, **figures: Any) -> dict[str, Any]:
    """One line of gate.json; passed where there is no reason against it."""
    return {"name": name, "passed": not reason, "reason": reason, **figures}


def reasons(name: str, find: Callable[..., list[str]], *args: Any) -> dict[str, Any]:
    """The check of a function that gives reasons, or raises one."""
    try:
        return check(name, "; ".join(find(*args)))
    except UserError as error:
        return check(name, str(error))
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:  # a file of another shape than ours
        return check(name, f"a file has another shape than the one that was written ({type(error).__name__}: {error})")


def incumbent_of(store: Releases, project: str, stage: str) -> dict[str, Any] | None:
    """The release at the stage now, or None before the first."""
    version = store.stages().get(project, {}).get(stage)
    return store.resolve(f"{project}@{version}") if version else None


def measured(run_dir: Path, policy: dict, files: dict, store: Releases, incumbent: dict | None) -> list[dict[str, Any]]:
    """Scores repeated now and held against the policy and the incumbent; the server's answers, latency and size."""
    run, test_set = read_run(run_dir), policy["test_set"]
    package = package_of(run["project"])
    scores, checks = run["eval"][test_set], []
    command = (scores["command"]["argv"], scores["command"]["cwd"])
    try:
        again, rows = evaluate_again(package, {name: run_dir / name for name in support(run_dir, files)}, *command)
    except UserError as error:
        checks.append(check("evaluation repeated", str(error)))
        again, rows = scores, None
    else:
        checks.append(check("evaluation repeated", "; ".join(changes(scores, again))))
    checks.append(check("test set", other_test_set(policy, again)))
    checks += within_bounds(policy, again)
    if rows is not None:
        checks += against(rows, package, command, store, incumbent, policy["baseline"])
    return checks + served(package, run_dir / CHECKPOINT, policy["budget"])


def support(run_dir: Path, files: dict[str, str]) -> list[str]:
    """Names of the files that an evaluation may need beside the checkpoint."""
    return [name for name in (*files, "vocab.json") if (run_dir / name).is_file()]


def changes(recorded_scores: dict, again: dict) -> list[str]:
    """In words, the recorded numbers that did not come out again."""
    was, now = scalars({**recorded_scores, "backtest": {}}), scalars(again)  # which would train for minutes
    other = [
        f"{name} was recorded as {was.get(name)}, is {now.get(name)}"
        for name in sorted(was.keys() | now.keys())
        if name not in was or name not in now or abs(was[name] - now[name]) > SAME * (1 + abs(now[name]))
    ]
    return other[:5] + ([f"and {len(other) - 5} more"] if len(other) > 5 else [])


def other_test_set(policy: dict, scores: dict) -> str:
    """Why the examples are not those that the policy names; empty where they are, or where it names none."""
    wanted, found = policy.get("test_version", ""), str(scores.get("data_version"))
    return "" if not wanted or found.startswith(wanted) else f"the test set is of data version {found}, wanted {wanted}"


def within_bounds(policy: dict, scores: dict) -> list[dict[str, Any]]:
    """One check for each bound on the scores; those of [data] are for the manifest."""
    return [
        check(f"{section}: {key}", broken(key, at(scores, key), bounds), found=shown(at(scores, key)), wanted=bounds)
        for section in BOUNDS
        if section != "data"
        for key, bounds in policy.get(section, {}).items()
    ]


def shown(value: Any) -> Any:
    """A list by its length, as bounds take it."""
    return len(value) if isinstance(value, (list, dict)) else value


def against(
    rows: dict, package: str, command: tuple, store: Releases, incumbent: dict | None, options: dict
) -> list[dict[str, Any]]:
    """Not worse than the incumbent beyond chance, overall and on each slice with enough examples."""
    if incumbent is None:
        return [check("baseline", "", note="there is no release at this stage yet, so nothing to be worse than")]
    argv = [word for word in command[0] if word != "--robustness"]  # only the rows are compared
    try:
        kept = {name: store.file(incumbent, name) for name in incumbent["files"]}
        _, theirs = evaluate_again(package, kept, argv, command[1])
        found = compare_rows(
            rows, theirs, options["level"], options["margin"], options["slice_margin"], options["min_slice"]
        )
    except UserError as error:
        return [check("baseline", str(error))]
    return [check(f"baseline: {one['slice']}", worse(one), **one) for one in found]


def worse(one: dict) -> str:
    """Why a comparison speaks against the candidate; empty where it does not."""
    low, high = one["interval"]
    told_as = f"{one['candidate']:.4g} against {one['incumbent']:.4g} on {one['examples']} examples"
    return f"worse than the incumbent: {told_as}, difference {low:.4g} to {high:.4g}" if one["worse"] else ""


def served(package: str, ckpt: Path, budget: dict) -> list[dict[str, Any]]:
    """Golden answers, latency and size, all of now."""
    megabytes = ckpt.stat().st_size / 1e6
    size = broken("size in MB", megabytes, f"<= {budget['size_mb']}") if budget["size_mb"] < float("inf") else ""
    checks = [check("size", size, megabytes=megabytes)]
    try:
        found = ask_server(package, ckpt, int(budget["requests"]))
    except UserError as error:
        return [*checks, check("golden replay", ""), check("latency", str(error))]
    checks.append(check("golden replay", found["ready"]))
    if found["ready"]:
        return [*checks, check("latency", "not measured: the server did not become ready")]
    limit = budget["p99_ms"]
    slow = broken("p99 in ms", found["p99_ms"], f"<= {limit}") if limit < float("inf") else ""
    return [*checks, check("latency", slow, **{key: found[key] for key in ("p50_ms", "p99_ms", "requests")})]


def data_bounds(run_dir: Path, policy: dict) -> list[str]:
    """Leaks, duplicates and what else the policy bounds in data_manifest.json."""
    manifest = read_manifest(run_dir)
    return list(filter(None, (broken(key, at(manifest, key), bound) for key, bound in policy.get("data", {}).items())))


def data_now(run_dir: Path, policy: dict) -> list[str]:
    """The data still lies there as it was trained on, every byte."""
    if not policy["provenance"]["data_present"]:
        return []
    cwd = read_run(run_dir)["cwd"]
    found = compare(recorded(run_dir), present(run_dir, verify=True, base=cwd if Path(cwd).is_dir() else ""))
    return [] if found["same"] else ["the data changed since training: " + "; ".join(told(found))]


def provenance(run_dir: Path, policy: dict) -> list[str]:
    """The code is a known commit without changes, and the command is known."""
    run = read_run(run_dir)
    if not policy["provenance"]["clean"]:
        return []
    found = [] if run["git"]["commit"] else ["the commit of the code is not known: train from a git checkout"]
    if run["git"]["dirty"]:
        found.append("the code had uncommitted changes: commit them and train again")
    return found if run["module"] else [*found, "the command of the training is not known"]


def card(run_dir: Path, policy: dict) -> list[str]:
    """MODEL_CARD.md and DATA_CARD.md are complete, and of these files."""
    optional = () if policy["card"]["robustness"] else ("robustness",)
    return card_problems(run_dir, optional) if policy["card"]["complete"] else []


FROM_FILES = {"data": data_bounds, "data as trained on": data_now, "provenance": provenance, "card": card}
