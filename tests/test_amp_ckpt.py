"""A checkpoint: what goes in comes out, and the file is written whole or not at all."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import amp_ckpt
from common.amp_ckpt import EMA, CheckpointError, load_ckpt, save_ckpt
from common.log import file_sha256
from tests.checkpoints import batch, ckpt, net, same

ROOT = Path(amp_ckpt.__file__).resolve().parent.parent


# ---- what goes in comes out


def test_round_trip_to_the_bit(tmp_path):
    everything = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    held = ckpt(
        model={
            "bf16": torch.randn(7).bfloat16(),
            "half": torch.tensor([math.nan, -math.inf, 6e-8]).half(),
            "int": torch.tensor([-(2**63), 2**63 - 1]),
            "uint8": torch.randint(256, (2, 3, 4), dtype=torch.uint8),
            "bool": torch.tensor([True, False]),
            "empty": torch.empty(0, 3),
            "scalar": torch.tensor(3.5),
            "transposed": everything.T,
            "strided": everything[::2, 1::3],
            "expanded": torch.ones(1).expand(9),
            "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        },
        config={"nan": math.nan, "inf": [math.inf, -math.inf], "tuple": (1, "a", None, True), "big": 2**100},
        assets=OrderedDict(classes=["é", "日本", "\udcff"], by_id={0: "zero", -1: "none"}),
        opt={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]},
    )
    save_ckpt(tmp_path / "new" / "best.pt", held)
    loaded = load_ckpt(tmp_path / "new" / "best.pt", project="vision")
    assert same(loaded, {**held, "assets": dict(held["assets"]), "format": 1})
    assert loaded["model"]["channels_last"].is_contiguous(memory_format=torch.channels_last)
    save_ckpt(tmp_path / "again.pt", loaded)  # what was loaded can be saved
    assert same(load_ckpt(tmp_path / "again.pt"), loaded)


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    large = torch.randn(1000, 1000)
    save_ckpt(tmp_path / "a.pt", ckpt(model={"row": large[3], "column": large[:, 3], "none": large[:0]}))
    assert (tmp_path / "a.pt").stat().st_size < 20_000
    model = load_ckpt(tmp_path / "a.pt")["model"]
    assert torch.equal(model["row"], large[3])
    assert torch.equal(model["column"], large[:, 3])
    save_ckpt(tmp_path / "b.pt", ckpt(model={"one": large, "same": large}))
    assert (tmp_path / "b.pt").stat().st_size < 4.1e6  # tied weights are stored once


def test_no_gradient_and_no_graph_in_the_file(tmp_path):
    weight = nn.Parameter(torch.ones(2))
    save_ckpt(tmp_path / "a.pt", ckpt(model={"w": weight * 2}))
    assert not load_ckpt(tmp_path / "a.pt")["model"]["w"].requires_grad


def test_state_dicts_of_a_real_run_come_back(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "ema": EMA(model).state_dict()}
    save_ckpt(tmp_path / "last.pt", ckpt(model=model.state_dict(), opt=state))
    held, other = load_ckpt(tmp_path / "last.pt"), net(seed=5)
    other.load_state_dict(held["model"])
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    torch.optim.AdamW(other.parameters()).load_state_dict(held["opt"]["optimizer"])
    assert same(held["opt"]["optimizer"], optimizer.state_dict())


def test_the_json_twin_is_valid_json(tmp_path):
    held = ckpt(metrics={"nan": math.nan, "low": -math.inf}, assets={"classes": ["é", "\udcff"], "by_id": {0: "a"}})
    save_ckpt(tmp_path / "best.pt", held)
    text = (tmp_path / "best.json").read_text(encoding="utf-8")
    twin = json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity bare are not JSON
    assert twin["metrics"] == {"nan": "NaN", "low": "-Infinity"}
    assert twin["assets"] == {"classes": ["é", "\udcff"], "by_id": {"0": "a"}}
    assert twin["model"]["w"] == "tensor [5, 3] float32"
    assert '"é"' in text
    assert twin["file"] == "best.pt"
    assert twin["sha256"] == file_sha256(tmp_path / "best.pt")


class Text(str):
    """A str that is more than one, as torch.__version__ is."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.float64(1.0), "numpy.float64"),
        (np.arange(3), "numpy.ndarray"),
        ({1, 2}, "builtins.set"),
        (object(), "builtins.object"),
        (Path("a"), r"pathlib\.(_local\.)?PosixPath"),
        (Text("2.13"), r"test_amp_ckpt\.Text"),
        (b"bytes", "builtins.bytes"),
        (1j, "builtins.complex"),
        (print, "builtins.builtin_function_or_method"),
        (torch.float32, "torch.dtype"),
        (nn.Parameter(torch.ones(1)), "torch.nn.parameter.Parameter"),
        (torch.eye(2).to_sparse(), "torch.Tensor"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
)
def test_what_loading_would_refuse_is_refused_with_its_place(tmp_path, value, words):
    place = r"^ckpt\.config\.deep\[1\]\[0\]\.x"
    with pytest.raises(CheckpointError, match=rf"{place}: a \S*{words}, .*wanted plain values"):
        save_ckpt(tmp_path / "a.pt", ckpt(config={"deep": [0, ({"x": value},)]}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [1.5, (1, 2), None, True, Text("k")])
def test_keys_are_text_or_whole_numbers(tmp_path, key):
    with pytest.raises(CheckpointError, match=r"^ckpt\.assets: the key .* wanted a str or an int"):
        save_ckpt(tmp_path / "a.pt", ckpt(assets={key: 1}))


def test_required_keys_are_wanted_when_saving(tmp_path):
    held = ckpt()
    del held["golden"], held["reference"]
    with pytest.raises(CheckpointError, match=r"a\.pt: the checkpoint lacks reference, golden; wanted project, model"):
        save_ckpt(tmp_path / "a.pt", held)


# ---- written whole or not at all


CHILD = """
import sys, resource, signal
import torch
from common.amp_ckpt import save_ckpt, REQUIRED, CheckpointError
path, mode = sys.argv[1:]
def save(value, n):
    model = {"w": torch.full((n,), float(value))}
    save_ckpt(path, {key: {} for key in REQUIRED} | {"project": "p", "epoch": value, "model": model})
save(1, 10)
print("ready", flush=True)
if mode == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        save(2, 100_000)
    except CheckpointError as error:
        print(error)
else:
    value = 2
    while True:
        save(value, 300_000)
        value += 1
"""


def child(path: Path, mode: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", CHILD, path, mode], env=env, stdout=subprocess.PIPE, text=True)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    process = child(tmp_path / "last.pt", "full")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "last.pt: " in out
    assert "cannot be written (File too large)" in out
    assert load_ckpt(tmp_path / "last.pt")["epoch"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "last.json"}


def test_kill_9_while_saving_leaves_a_whole_file(tmp_path):
    process = child(tmp_path / "last.pt", "loop")
    assert process.stdout.readline() == "ready\n"
    for wait in (0.3, 0.05, 0.02, 0.03):  # what is read between kills is whole, too
        time.sleep(wait)
        held = load_ckpt(tmp_path / "last.pt")
        assert set(held["model"]["w"].tolist()) == {float(held["epoch"])}
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    held = load_ckpt(tmp_path / "last.pt")
    assert held["epoch"] > 1
    assert set(held["model"]["w"].tolist()) == {float(held["epoch"])}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"file/a\.pt: \d+ bytes cannot be written"):
        save_ckpt(tmp_path / "file" / "a.pt", ckpt())
