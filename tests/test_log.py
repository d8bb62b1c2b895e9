"""Logs that survive kill -9 and a full disk."""

import csv
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common import log

REPOSITORY = Path(log.__file__).resolve().parent.parent


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
