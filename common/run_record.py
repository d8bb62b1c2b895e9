"""One training as one file: what ran, where, on which data, and what came of it.

    record_run("runs/vision")                       # at the end of a training; reads its artefacts
    for run in find_runs(["runs"]):
        print(run["dir"], run["best"])

Writes `run.json` beside the checkpoint. Reads `best.json` (the checkpoint's twin), `data_manifest.json` and, for what
came of it, `metrics.json`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from common.ckpt_file import replace_file
from common.cli import UserError
from common.data_versions import list_files, read_manifest
from common.log import file_sha256, read_jsonl

FORMAT = 1
CURVE = "train.jsonl"  # a line an epoch
PACKAGES = ("python", "torch", "numpy", "pillow")  # all that the code imports at run time
LOWER_IS_BETTER = {"loss", "nll", "ece", "brier", "aurc", "mae", "mse", "rmse", "mase", "smape", "pinball", "width"}
LOWER_IS_BETTER |= {
    "error",
    "risk",
    "seconds",
    "winkler",
    "mistakes",
    "quarantined",
    "skipped",
    "blind",
    "also_in_train",
}
HIGHER_IS_BETTER = {"acc", "accuracy", "f1", "precision", "recall", "auroc", "coverage", "skill"}


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object; UserError, naming the file, where it is absent, torn or something else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no whole JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: found a {type(value).__name__}, wanted a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    replace_file(path, lambda file: file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode()))


def record_run(run_dir: str | Path, files: dict[str, str] | None = None) -> dict[str, Any]:
    """Write `run.json` from what a training left in `run_dir`, and return it.

    files: {split: path} where each split is read from one file; without it, the project has written `data_files.csv`
    by itself.
    """
    run_dir = Path(run_dir)
    twin, manifest = read_json(run_dir / "best.json"), read_manifest(run_dir)
    origin = twin["provenance"]
    version = list_files(run_dir, files) if files else manifest["data_version"]
    seconds = sum(line.get("seconds", 0) for line in read_jsonl(run_dir / CURVE)[0])  # before an interruption too
    record = {
        "format": FORMAT,
        "project": twin["project"],
        "module": _module(),
        "argv": sys.argv[1:],
        "cwd": os.getcwd(),
        "started": origin["utc"],
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "host": host(),
        "git": {"commit": origin["git_commit"], "dirty": origin["git_dirty"]},
        "packages": {name: origin[name] for name in PACKAGES},
        "seed": origin["seed"],
        "data_version": origin["data_version"],
        "files_version": version,
        "data_roots": files or manifest["roots"],
        "config": twin["config"],
        "curve": CURVE,
        "best": {"epoch": twin["epoch"], **twin["metrics"]},
        "checkpoint": {"file": twin["file"], "sha256": twin["sha256"]},
        "files": {name: file_sha256(run_dir / name) for name in (CURVE, "data_manifest.json", "data_files.csv")},
    }
    write_json(run_dir / "run.json", record)
    return record


def _module() -> str | None:
    """`project_x.train` where this process was started by `python -m project_x.train`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec else None


def host() -> dict[str, Any]:
    """The machine, as far as bit-equal results and timings depend on it."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads = torch.get_num_threads()
    return {"name": platform.node(), "cpu": cpu, "cores": os.cpu_count(), "threads": threads, "gpu": gpu}


def read_run(place: str | Path) -> dict[str, Any]:
    """`run.json` of a run folder, with "dir" and "eval" (scores in metrics.json). UserError where it is not whole."""
    run_dir = Path(place)
    if not (run_dir / "run.json").exists():
        raise UserError(f"{run_dir}: no run.json; wanted the folder of a finished training")
    record = read_json(run_dir / "run.json")
    if record.get("format") != FORMAT:
        raise UserError(f"{run_dir}/run.json: format {record.get('format')!r}, this code reads {FORMAT}; train again")
    metrics = read_json(run_dir / "metrics.json") if (run_dir / "metrics.json").exists() else {}
    return {**record, "dir": str(run_dir), "eval": metrics.get("eval", {})}


def find_runs(roots: Iterable[str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """(runs, problems): every run under the folders, the oldest first, and in words those that cannot be read."""
    runs, problems = [], []
    for path in sorted({path for root in roots for path in Path(root).rglob("run.json")}):
        try:
            runs.append(read_run(path.parent))
        except UserError as error:
            problems.append(str(error))
    return sorted(runs, key=lambda run: str(run.get("ended"))), problems


def flat(run: dict[str, Any]) -> dict[str, Any]:
    """Single values by a name one can type: `val_acc`, `test.accuracy`, `config.lr`, `git.commit`, `seed` ..."""
    found = {key: run.get(key) for key in ("dir", "project", "started", "seconds", "seed", "data_version")}
    found |= run.get("best", {})
    for part in ("config", "git", "packages", "host"):
        found |= {f"{part}.{key}": value for key, value in run.get(part, {}).items()}
    for name, scores in run.get("eval", {}).items():
        found |= {f"{name}.{key}": value for key, value in scalars(scores).items()}
    return found


def scalars(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The numbers in nested dicts, by dotted name."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= scalars(value, f"{above}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[above + key] = value
    return found


def lower_is_better(metric: str) -> bool:
    """By the last word in its name that tells: loss, nll, ece, mse ... are errors, all else are scores."""
    for part in reversed(metric.split(".")):
        words = {part, *part.split("_")}
        if words & (LOWER_IS_BETTER | HIGHER_IS_BETTER):
            return not words & HIGHER_IS_BETTER
    return False


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list]:
    """{name: [value in a, value in b]} for all that differs between two runs (as `flat` names it), but for places."""
    a, b = flat(a), flat(b)
    places = {"dir", "config.train_root", "config.val_root"}
    return {key: [a.get(key), b.get(key)] for key in {**a, **b} if a.get(key) != b.get(key) and key not in places}
