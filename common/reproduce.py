"""Train a run again from its record, and compare the weights bit by bit.

    found = reproduce("runs/vision", "runs/vision-again")
    found["equal"]                              # True, or found["differs"] says what does

Reads run.json, the data it names and the checkpoint; runs the recorded command anew and writes its run to `out`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import common
from common.amp_ckpt import load_ckpt
from common.cli import UserError
from common.data_versions import compare, present, recorded, told
from common.log import provenance
from common.run_record import PACKAGES, host, read_run

OURS = {"--run_dir": True, "--resume": False, "--no-resume": False}  # flags left out of the command: takes a value?


def reproduce(run_dir: str | Path, out: str | Path) -> dict[str, Any]:
    """{"equal", "differs": [in words], "out"}; `differs` also names what else is not as it was, if weights are equal.

    Raises UserError where the run cannot be trained again: other data, no recorded command, `out` taken.
    """
    run = read_run(run_dir)
    if not str(run["module"] or "").endswith(".train"):
        raise UserError(f"{run_dir}: was trained by {run['module'] or 'no command'}, wanted python -m project_x.train")
    if Path(out).exists():
        raise UserError(f"{out}: exists; pass another --out")
    folder = Path(run["cwd"]) if Path(run["cwd"]).is_dir() else Path.cwd()  # paths of the data may be relative to it
    changes = compare(recorded(run_dir), present(run_dir, verify=True, base=folder))
    if not changes["same"]:
        raise UserError(f"{run_dir}: cannot be trained again, the data is another: {'; '.join(told(changes))}")
    differs = environment_differences(run)
    _train(run, folder, Path(out).resolve())
    equal, words = compare_weights(Path(run_dir, "best.pt"), Path(out, "best.pt"))
    if not equal and run["git"]["dirty"]:
        differs.append("the run was trained from code with uncommitted changes")
    return {"equal": equal, "differs": [*words, *differs], "out": str(out)}


def environment_differences(run: dict[str, Any]) -> list[str]:
    """In words: what of git, packages and machine is not as it was."""
    now = provenance(run["seed"], run["data_version"])
    pairs = {"git commit": (run["git"]["commit"], now["git_commit"])}
    pairs["uncommitted changes"] = (run["git"]["dirty"], now["git_dirty"])
    pairs |= {name: (run["packages"][name], now[name]) for name in PACKAGES}
    pairs |= {name: (run["host"][name], value) for name, value in host().items() if name in ("cpu", "gpu")}
    return [f"{name} was {was}, is {value}" for name, (was, value) in pairs.items() if was != value]


def command_of(run: dict[str, Any], out: str | Path) -> list[str]:
    """The recorded command, with another --run_dir and from the start."""
    words, skip = [], False
    for word in run["argv"]:
        name, _, value = word.partition("=")
        if skip:
            skip = False
        elif name in OURS:
            skip = OURS[name] and not value
        else:
            words.append(word)
    return [sys.executable, "-m", run["module"], *words, "--run_dir", str(out)]


def _train(run: dict[str, Any], folder: Path, out: Path) -> None:
    code = str(Path(common.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    threads = str(run["host"]["threads"])  # sums over threads depend on their number
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": threads}
    done = subprocess.run(command_of(run, out), cwd=folder, env=environment)
    if done.returncode:
        raise UserError(f"{out}: the recorded command ended with {done.returncode}; its words are above")


def compare_weights(a: Path, b: Path) -> tuple[bool, list[str]]:
    """(bit-equal, the tensors that differ, in words) of two checkpoints."""
    first, second = (load_ckpt(path)["model"] for path in (a, b))
    if first.keys() != second.keys():
        return False, [f"the layers differ: {sorted(first.keys() ^ second.keys())[:8]}"]
    other = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    if not other:
        return True, []
    if any(first[name].shape != second[name].shape for name in other):
        return False, [f"{len(other)} of {len(first)} tensors differ in shape or value"]
    most = max((first[name].double() - second[name].double()).abs().max().item() for name in other)
    return False, [f"{len(other)} of {len(first)} weight tensors differ, by {most:.3g} at most; first {other[0]}"]
