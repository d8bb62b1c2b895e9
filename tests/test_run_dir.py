"""One training a folder, let go by a kill, and no earlier run written over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common import run_dir as module
from common.cli import UserError
from common.run_dir import claim_run_dir

ROOT = Path(module.__file__).resolve().parent.parent
HOLDER = """
import os, sys, time
from common.run_dir import claim_run_dir
with claim_run_dir(sys.argv[1], resume=False):
    worker = os.fork() if sys.argv[2] == "worker" else 1  # a loader worker outlives a killed training for a while
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


def holder(run_dir: Path, kind: str) -> tuple[subprocess.Popen, int]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, run_dir, kind]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("kind", ["alone", "worker"])
def test_a_second_training_is_refused_until_the_first_is_killed(tmp_path, kind):
    run_dir = tmp_path / "deep" / "run"
    process, worker = holder(run_dir, kind)
    (run_dir / "last.pt").write_text("weights")
    try:
        for resume in (False, True):
            with pytest.raises(UserError, match=r"run: another training is writing here; pass another --run_dir"):
                claim_run_dir(run_dir, resume).__enter__()
        assert (run_dir / "last.pt").read_text() == "weights"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        with claim_run_dir(run_dir, resume=True) as claimed:
            assert (claimed / "last.pt").read_text() == "weights"
    finally:
        process.kill()
        process.wait(timeout=30)
        process.stdout.close()
        if worker > 1:
            os.kill(worker, signal.SIGKILL)


def test_the_folder_is_free_after_the_block_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), claim_run_dir(tmp_path, resume=False):
        raise ZeroDivisionError
    process, _ = holder(tmp_path, "alone")  # another process gets it
    process.kill()
    process.wait(timeout=30)
    process.stdout.close()


def test_earlier_runs_are_set_aside_and_nothing_is_lost(tmp_path, capsys):
    for number in range(3):
        with claim_run_dir(tmp_path, resume=False) as run_dir:
            assert [path.name for path in run_dir.iterdir() if path.is_file()] == [".lock"]
            (run_dir / "last.pt").write_text(f"weights {number}")
            (run_dir / "train.jsonl").write_text(f"log {number}")
            os.utime(run_dir / "train.jsonl", (10**9, 10**9))
            os.utime(run_dir / "last.pt", (10**9 + 0.25, 10**9 + 0.25))  # all of the same moment
    folders = sorted((tmp_path / "earlier").iterdir())
    assert [folder.name for folder in folders] == ["2001-09-09T014640.250000Z", "2001-09-09T014640.250000Z+"]
    for number, folder in enumerate(folders):
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            "last.pt": f"weights {number}",
            "train.jsonl": f"log {number}",
        }
        assert f"the earlier run in {tmp_path} now lies in {folder}\n" in capsys.readouterr().out or number
    assert (tmp_path / "last.pt").read_text() == "weights 2"


def test_files_of_no_run_stay_where_they_are(tmp_path):
    (tmp_path / "README.md").write_text("--run_dir . was meant")
    with claim_run_dir(tmp_path, resume=False):
        assert (tmp_path / "README.md").exists()
    assert not (tmp_path / "earlier").exists()


def test_resume_keeps_the_files_and_wants_last_pt(tmp_path):
    with pytest.raises(UserError, match=r"^--resume: no last\.pt in .*; leave --resume out to start a run"):
        claim_run_dir(tmp_path / "none", resume=True).__enter__()
    assert not (tmp_path / "none").exists()
    for name in ("last.pt", "train.jsonl", ".last.pt.123.tmp"):
        (tmp_path / name).write_text(name)
    with claim_run_dir(str(tmp_path), resume=True) as run_dir:
        assert {path.name for path in run_dir.iterdir()} == {".lock", "last.pt", "train.jsonl"}  # the torn one is gone


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot write here \(.*\); pass another --run_dir"):
            claim_run_dir(path, resume=False).__enter__()
