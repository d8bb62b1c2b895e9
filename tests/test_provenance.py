"""Versions that change with the data and with nothing else, and the provenance of a run."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from common import log

REPOSITORY = Path(log.__file__).resolve().parent.parent
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


# ---- data version


def make_files(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return [root / name for name in contents]


CONTENTS = {"cat/1.png": b"one", "cat/2.png": b"two", "dog/1.png": b"three"}


def test_data_version_does_not_depend_on_order_or_place(tmp_path, monkeypatch):
    files = make_files(tmp_path / "a", CONTENTS)
    moved = make_files(tmp_path / "b" / "c", CONTENTS)
    version = log.data_version(tmp_path / "a", files)
    assert len(version) == 64
    assert version == log.data_version(tmp_path / "a", reversed(files))
    assert version == log.data_version(str(tmp_path / "b" / "c"), [str(file) for file in moved])
    monkeypatch.chdir(tmp_path)
    assert version == log.data_version("a", [Path("a", name) for name in CONTENTS])
    assert version == log.data_version("a", files)
    assert version == log.version_of({name: log.file_sha256(tmp_path / "a" / name) for name in CONTENTS})


def test_data_version_form_is_fixed():
    """A change of the form would make every version on record wrong."""
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert log.version_of({"b": empty, "a": empty}) == hashlib.sha256(f"a\0{empty}\nb\0{empty}\n".encode()).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {**CONTENTS, "cat/1.png": b"One"},
        {**CONTENTS, "dog/2.png": b""},
        {"cat/1.png": b"one", "cat/2.png": b"two", "dog/3.png": b"three"},
        {"cat/1.png": b"two", "cat/2.png": b"one", "dog/1.png": b"three"},
        {"cat/1.png": b"one", "cat/2.png": b"two"},
    ],
    ids=["content", "added", "renamed", "swapped", "removed"],
)
def test_data_version_changes_with_the_data(tmp_path, changed):
    before = log.data_version(tmp_path / "a", make_files(tmp_path / "a", CONTENTS))
    assert before != log.data_version(tmp_path / "b", make_files(tmp_path / "b", changed))


def test_data_version_of_file_names_that_are_not_utf8(tmp_path):
    names = [b"caf\xe9.txt", "café.txt".encode()]
    try:
        for name in names:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    files = list(tmp_path.iterdir())
    assert len({log.data_version(tmp_path, [file]) for file in files}) == 2
    assert log.data_version(tmp_path, files) == log.data_version(tmp_path, files[::-1])


def test_data_version_refuses(tmp_path):
    with pytest.raises(ValueError, match="found no files"):
        log.data_version(tmp_path, [])
    with pytest.raises(ValueError, match="not in the subpath"):
        log.data_version(tmp_path / "a", [tmp_path / "b"])
    with pytest.raises(FileNotFoundError):
        log.data_version(tmp_path, [tmp_path / "missing"])
    with pytest.raises(ValueError, match="wanted a SHA-256"):
        log.version_of({"a": "123"})


def test_file_sha256_over_several_pieces(tmp_path):
    (tmp_path / "big").write_bytes(b"a" * 3_000_000)  # more than two pieces
    assert log.file_sha256(tmp_path / "big") == hashlib.sha256(b"a" * 3_000_000).hexdigest()


# ---- provenance


def test_provenance_is_plain_and_complete(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--seed", "7"])
    record = log.provenance(7, "ab" * 32, device="cpu", accuracy=np.float32(0.5))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert type(record["torch"]) is str
    assert b"torch" not in pickle.dumps(record).replace(b"torch", b"", 1)  # the key alone, no class of torch
    assert (record["seed"], record["data_version"], record["accuracy"]) == (7, "ab" * 32, 0.5)
    assert record["command"] == ["train.py", "--seed", "7"]
    assert datetime.fromisoformat(record["utc"]).utcoffset() == timedelta(0)
    with pytest.raises(ValueError, match=r"extra names \['numpy'\]"):
        log.provenance(7, None, numpy="mine")


def git(folder, *args):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *identity, *args], cwd=folder, env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@needs_git
def test_git_state_of_a_checkout(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    file = tmp_path / "common" / "log.py"
    make_files(tmp_path, {"common/log.py": b"x = 1\n"})
    assert log.git_state(file) == (None, None)  # no commit holds it yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert log.git_state(file) == (commit, False)
    make_files(tmp_path, {"venv/common/log.py": b"installed\n"})
    assert log.git_state(file) == (commit, False)  # a new file that is not tracked changes no code
    assert log.git_state(tmp_path / "venv" / "common" / "log.py") == (None, None)
    file.write_bytes(b"x = 2\n")
    assert log.git_state(file) == (commit, True)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert log.git_state(file) == (commit, True)


def test_provenance_outside_a_checkout(tmp_path, capfd):
    shutil.copytree(REPOSITORY / "common", tmp_path / "common", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from common import log; r = log.provenance(1, None); print(r['git_commit'], r['git_dirty'])"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert capfd.readouterr() == ("None None\n", "")


def test_provenance_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert log.git_state(log.__file__) == (None, None)
