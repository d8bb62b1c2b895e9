"""Logs that survive kill -9 and a full disk, and versions that change with the data and with nothing else."""

import csv
import hashlib
import io
import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from common import log

REPOSITORY = Path(log.__file__).resolve().parent.parent
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


# ---- JSON lines


def test_jsonl_round_trip_with_nan_and_scalars(tmp_path):
    path = tmp_path / "runs" / "new" / "train.jsonl"
    record = {
        "nan": math.nan,
        "inf": [torch.tensor(math.inf), np.float32(-math.inf)],
        "step": np.int64(3),
        "loss": torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True),
        "flag": np.bool_(True),
        "matrix": torch.eye(2, dtype=torch.long),
        "path": Path("a/b"),
        "nested": {"text": 'é\n"\udcff', "none": None, "pair": (1, 2.5)},
    }
    with log.JsonlLogger(path) as logger:
        logger.log(record)
        logger.log({"epoch": 2})
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 3
    strict = json.loads(lines[0], parse_constant=pytest.fail)  # NaN and Infinity bare are not JSON
    assert strict["nan"] == "NaN"
    assert strict["inf"] == ["Infinity", "-Infinity"]
    (first, second), torn = log.read_jsonl(path)
    assert (second, torn) == ({"epoch": 2}, 0)
    assert math.isnan(first.pop("nan"))
    assert first == {
        "inf": [math.inf, -math.inf],
        "step": 3,
        "loss": 0.5,
        "flag": True,
        "matrix": [[1, 0], [0, 1]],
        "path": "a/b",
        "nested": {"text": 'é\n"\udcff', "none": None, "pair": [1, 2.5]},
    }


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", 1j, {3: "number as key"}])
def test_jsonl_names_what_it_cannot_hold(tmp_path, value):
    with log.JsonlLogger(tmp_path / "x.jsonl") as logger:
        with pytest.raises(TypeError, match=r"record\.metrics\[1\]: found"):
            logger.log({"metrics": [0, value]})
        logger.log({"after": 1})
    assert log.read_jsonl(tmp_path / "x.jsonl") == ([{"after": 1}], 0)


def test_jsonl_starts_on_a_fresh_line_after_a_torn_one(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"epoch": 1}\n\n{"epoch": 2, "lo')
    with log.JsonlLogger(path) as logger:
        logger.log({"epoch": 2})
    assert log.read_jsonl(path) == ([{"epoch": 1}, {"epoch": 2}], 1)


@pytest.mark.parametrize("tail", [b"\xff\xfe", b"\0\0\0\0", b"12", b'"text"', b'{"a": "\xc3'])
def test_read_jsonl_counts_what_is_no_record(tmp_path, tail):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + tail)
    assert log.read_jsonl(tmp_path / "x.jsonl") == ([{"a": 1}], 1)


def test_read_jsonl_takes_a_whole_record_without_its_newline(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n{"a": 2}')
    assert log.read_jsonl(tmp_path / "x.jsonl") == ([{"a": 1}, {"a": 2}], 0)


def test_two_loggers_on_one_file_do_not_mix_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    with log.JsonlLogger(path) as one, log.JsonlLogger(path) as two:
        for i in range(20):
            (one, two)[i % 2].log({"i": i})
    assert log.read_jsonl(path) == ([{"i": i} for i in range(20)], 0)


KILLED = """
import sys
from common.log import {logger}
log = {arguments}
i = 0
while True:
    log.log({{"i": i, "text": "x" * 300}})
    i += 1
    if i == 50:
        print("going", flush=True)
"""


def kill_while_logging(code):
    """Start the code, wait until it says that it is logging, and kill it with SIGKILL."""
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"going\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_jsonl_after_sigkill(tmp_path):
    path = str(tmp_path / "x.jsonl")
    code = KILLED.format(logger="JsonlLogger", arguments=f"JsonlLogger({path!r})")
    for runs in (1, 2):
        kill_while_logging(code)
        records, torn = log.read_jsonl(path)
        assert torn <= runs
        assert len(records) >= 50 * runs
        assert {len(record["text"]) for record in records} == {300}
        starts = [k for k, record in enumerate(records) if record["i"] == 0]
        assert len(starts) == runs
        last = records[starts[-1] :]
        assert [record["i"] for record in last] == list(range(len(last)))


def test_csv_after_sigkill(tmp_path):
    path = str(tmp_path / "x.csv")
    code = KILLED.format(logger="CsvLogger", arguments=f"CsvLogger({path!r}, ['i', 'text'])")
    kill_while_logging(code)
    with log.CsvLogger(path, ["i", "text"]) as logger:
        logger.log({"i": "end", "text": ""})
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 50
    assert [row["i"] for row in rows] == [*map(str, range(len(rows) - 1)), "end"]
    assert {len(row["text"]) for row in rows[:-1]} == {300}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_full_disk_raises():
    with log.JsonlLogger("/dev/full") as logger, pytest.raises(OSError, match="No space left"):
        logger.log({"a": 1})


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_write_cut_short_raises_and_the_next_line_is_whole(tmp_path, name):
    path = tmp_path / name
    logger = log.JsonlLogger(path) if name == "x.jsonl" else log.CsvLogger(path, ["a"])
    logger.log({"a": "first"})
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # the system takes 3 more bytes, as a disk with 3 bytes left does
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3, limits[1]))
        with pytest.raises(OSError, match=r"wrote 3 of \d+ bytes"):
            logger.log({"a": "second"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    logger.log({"a": "third"})
    logger.close()
    logger.close()
    if name == "x.jsonl":
        assert log.read_jsonl(path) == ([{"a": "first"}, {"a": "third"}], 1)
    else:
        assert path.read_text() == "a\nfirst\nthird\n"


# ---- CSV


def test_csv_writes_the_header_once(tmp_path):
    path = tmp_path / "new" / "x.csv"
    for epoch in (1, 2):
        with log.CsvLogger(path, ["epoch", "loss", "name"]) as logger:
            logger.log({"name": 'a,"b"', "epoch": np.int64(epoch), "loss": torch.tensor(math.nan)})
    assert path.read_text() == 'epoch,loss,name\n1,NaN,"a,""b"""\n2,NaN,"a,""b"""\n'


def test_csv_keeps_file_names_that_are_not_utf8(tmp_path):
    with log.CsvLogger(tmp_path / "x.csv", ["path"]) as logger:
        logger.log({"path": os.fsdecode(b"caf\xe9.jpg")})
    assert (tmp_path / "x.csv").read_bytes() == b"path\ncaf\xe9.jpg\n"


def test_csv_refuses_another_header(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("epoch,acc\n1,0.5\n")
    with pytest.raises(ValueError, match=r"x\.csv: found the header 'epoch,acc', wanted 'epoch,loss'; move"):
        log.CsvLogger(path, ["epoch", "loss"])
    assert path.read_text() == "epoch,acc\n1,0.5\n"


def test_csv_refuses_other_fields_and_line_breaks(tmp_path):
    with log.CsvLogger(tmp_path / "x.csv", ["a", "b"]) as logger:
        for row in ({"a": 1}, {"a": 1, "b": 2, "c": 3}):
            with pytest.raises(ValueError, match=r"found the fields .*wanted \['a', 'b'\]"):
                logger.log(row)
        with pytest.raises(ValueError, match="line break"):
            logger.log({"a": "one\ntwo", "b": 1})
    assert (tmp_path / "x.csv").read_text() == "a,b\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "a,b\n1,2\n"), ("a,", "a,b\n1,2\n"), ("a,b\n", "a,b\n1,2\n"), ("a,b\n3,4\n5,6", "a,b\n3,4\n1,2\n")],
)
def test_csv_cuts_a_torn_line(tmp_path, before, after):
    path = tmp_path / "x.csv"
    path.write_text(before)
    with log.CsvLogger(path, ["a", "b"]) as logger:
        logger.log({"a": 1, "b": 2})
    assert path.read_text() == after


# ---- progress


class Screen(io.StringIO):
    """Standard error as a terminal or as a pipe."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told: clock[0] is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def test_progress_on_a_terminal(monkeypatch, clock):
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = log.Progress(100, "epoch 1")
    for _ in range(50):
        clock[0] += 0.125
        progress.update(2)
    progress.close()
    drawn = screen.getvalue().split("\r")[1:]
    assert len(drawn) == 26  # every second update of 0.125 s is 0.2 s after the last drawn, and close() draws
    assert "epoch 1 50/100  16.0/s  3 s left" in drawn[12]
    assert drawn[-1] == "epoch 1 100/100  16.0/s  6.2 s\x1b[K\n"


@pytest.mark.parametrize(("end_line", "wanted"), [(False, ""), (True, "epoch 1 4/4  2.0/s  2.0 s\n")])
def test_progress_in_a_pipe(monkeypatch, clock, end_line, wanted):
    screen = Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = log.Progress(4, "epoch 1", end_line=end_line)
    for _ in range(4):
        clock[0] += 0.5
        progress.update()
    progress.close()
    assert screen.getvalue() == wanted


def test_progress_before_anything_is_known(clock):
    assert log.Progress(10).text() == "0/10  0.0/s  ? s left"
    unknown = log.Progress(0, "reading")
    unknown.update(4)
    clock[0] += 2
    assert unknown.text() == "reading 4  2.0/s  2.0 s"


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
