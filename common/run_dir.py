"""One training at a time in a run folder, and no training writes over an earlier one.

    with claim_run_dir("runs/vision", resume=False) as run_dir:
        history = restore(run_dir, base, model=model, optimizer=optimizer) if resume else []

Moves the files of an earlier run to `runs/vision/earlier/<UTC time of that run>/`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from common.amp_ckpt import load_ckpt, replace_file
from common.cli import UserError


@contextlib.contextmanager
def claim_run_dir(run_dir: str | Path, resume: bool) -> Iterator[Path]:
    """Folder made and locked until the block ends (a killed process lets go); with `resume` its files stay.

    Raises UserError where another training holds it, where there is nothing to resume, or where it cannot be made.
    """
    run_dir = Path(run_dir)
    if resume and not (run_dir / "last.pt").exists():
        raise UserError(f"--resume: no last.pt in {run_dir}; leave --resume out to start a run, or pass its --run_dir")
    with _open_lock(run_dir) as lock:
        try:
            # lockf and not flock: loader workers would inherit a flock, and hold it after a kill -9 of the training
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{run_dir}: another training is writing here; pass another --run_dir or wait") from error
        for torn in run_dir.glob(".*.tmp"):  # of a training killed while it wrote one of its files
            torn.unlink()
        if not resume:
            _set_aside(run_dir)
        yield run_dir


def restore(run_dir: Path, base: dict, **parts: object) -> list[dict]:
    """Load last.pt into all that trains (by name, None where unused), and cut train.jsonl back to it.

    base: what every checkpoint of the run holds, with "project", "config" and "provenance".
    Returns the lines of the epochs done. Raises UserError, naming each difference, for other flags or other data.
    """
    held = load_ckpt(run_dir / "last.pt", project=base["project"])
    was, now = ({**ckpt["config"], "data_version": ckpt["provenance"]["data_version"]} for ckpt in (held, base))
    changed = [f"{key} was {was.get(key)!r}, now {value!r}" for key, value in now.items() if was.get(key) != value]
    if changed:
        told = "; ".join(changed)
        raise UserError(f"--resume: {run_dir}/last.pt is of another run ({told}); pass its flags, or start anew")
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(held["opt"][name])
    history = held["opt"]["history"]
    lines = "".join(json.dumps(line) + "\n" for line in history)
    replace_file(run_dir / "train.jsonl", lambda file: file.write(lines.encode()))
    return history


def _open_lock(run_dir: Path) -> IO:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return open(run_dir / ".lock", "w")
    except OSError as error:
        raise UserError(f"{run_dir}: cannot write here ({error.strerror}); pass another --run_dir") from error


def _set_aside(run_dir: Path) -> None:
    files = [file for file in run_dir.iterdir() if file.is_file() and not file.name.startswith(".")]
    if not any(file.suffix == ".pt" or file.name == "train.jsonl" for file in files):  # no run: leave what lies there
        return
    newest = max(file.stat().st_mtime for file in files)
    stamp = datetime.fromtimestamp(newest, timezone.utc).strftime("%Y-%m-%dT%H%M%S.%fZ")
    earlier = run_dir / "earlier" / stamp
    while earlier.exists():  # a run that was copied back with its times
        earlier = earlier.with_name(earlier.name + "+")
    earlier.mkdir(parents=True)
    for file in files:
        file.rename(earlier / file.name)
    print(f"the earlier run in {run_dir} now lies in {earlier}")
