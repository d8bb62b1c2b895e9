"""A step that never spoils the weights, an average that is one, and a file that is whole or refused in words."""

import copy
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import amp_ckpt
from common.amp_ckpt import (
    EMA,
    REQUIRED,
    AmpScaler,
    CheckpointError,
    EarlyStopper,
    NonFiniteLoss,
    load_ckpt,
    save_ckpt,
)
from common.cli import UserError
from common.log import file_sha256

ROOT = Path(amp_ckpt.__file__).resolve().parent.parent
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def batch(n: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)


def same(a: object, b: object) -> bool:
    """Equal to the bit (NaN equals NaN), with the same types, whatever is nested in what."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(*(t.flatten().contiguous().view(torch.uint8) for t in (a, b)))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


# ---- the step


def test_cpu_is_fp32_unless_asked():
    scaler, model = AmpScaler("cpu"), net()
    with scaler.autocast():
        assert model(batch()[0]).dtype is torch.float32
    assert not AmpScaler("cpu", enabled=False, cpu_bf16=True).enabled


def test_cpu_bf16_keeps_weights_statistics_and_loss_in_fp32():
    scaler, model = AmpScaler("cpu", cpu_bf16=True), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch()
    before = copy.deepcopy(model.state_dict())
    with scaler.autocast():
        logits = model(x)
        loss = F.cross_entropy(logits, y)
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    loss.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    optimizer.zero_grad()
    with scaler.autocast():
        loss = F.cross_entropy(model(x), y)
    scaler.step(loss, optimizer, model.parameters(), step=0)
    after = model.state_dict()
    assert {t.dtype for t in after.values() if t.is_floating_point()} == {torch.float32}
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_a_loss_in_half_precision_is_a_slip():
    weight = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
    with pytest.raises(AssertionError, match="three digits"):
        AmpScaler("cpu").step(weight * 2, torch.optim.SGD([weight], lr=1.0), [weight], step=0)


@pytest.mark.parametrize(("clip", "length"), [(1.0, 1.0), (2.5, 2.5), (100.0, 13.0), (0, 13.0), (None, 13.0)])
def test_clipping_bounds_the_norm(clip, length):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([a, b], lr=1.0)
    loss = (a * torch.tensor([3.0, 4.0])).sum() + 12 * b.sum()  # gradient (3, 4, 12), norm 13
    AmpScaler("cpu", clip=clip).step(loss, optimizer, iter([a, b]), step=0)
    moved = -torch.cat([a, b]).detach()
    torch.testing.assert_close(moved, torch.tensor([3.0, 4.0, 12.0]) / 13 * length)
    assert a.grad is None


def test_accumulation_equals_one_large_batch():
    x, y = batch(12)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(192, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, parts in zip(models, (1, 4), strict=True):
        scaler, optimizer = AmpScaler("cpu", clip=0.1), torch.optim.SGD(model.parameters(), lr=1.0)
        before = model[1].weight.clone()
        for i, (part, labels) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
            assert torch.equal(model[1].weight, before)
            loss = F.cross_entropy(model(part), labels)
            scaler.step(loss, optimizer, model.parameters(), i, accumulate=parts, update=i + 1 == parts)
        assert not torch.equal(model[1].weight, before)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_before_anything_changes(bad):
    model, scaler = net(), AmpScaler("cpu")
    optimizer = torch.optim.AdamW(model.parameters())
    x, y = batch()
    scaler.step(F.cross_entropy(model(x), y), optimizer, model.parameters(), step=0)
    scaler.step(F.cross_entropy(model(x), y), optimizer, model.parameters(), step=1, accumulate=2, update=False)
    loss = F.cross_entropy(model(x), y) * bad
    before = copy.deepcopy((dict(model.state_dict()), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    with pytest.raises(NonFiniteLoss, match=rf"^step 17: the loss is {bad}, a finite number is wanted") as caught:
        scaler.step(loss, optimizer, model.parameters(), step=17)
    assert isinstance(caught.value, UserError)
    assert same(before, (dict(model.state_dict()), optimizer.state_dict(), [p.grad for p in model.parameters()]))


@pytest.mark.parametrize("clip", [1.0, 0])
def test_a_gradient_that_is_not_finite_stops_before_the_step(clip):
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight])
    with pytest.raises(NonFiniteLoss, match=r"^step 4: the gradient's norm is (inf|nan)"):
        AmpScaler("cpu", clip=clip).step(weight.sqrt().sum(), optimizer, [weight], step=4)  # sqrt'(0) is infinite
    assert torch.equal(weight, torch.zeros(3))
    assert not optimizer.state


def scaled_on_cpu(scale: float) -> AmpScaler:
    """The fp16 road of an older GPU, walked on the CPU, where torch has the same scaler."""
    scaler = AmpScaler("cpu", cpu_bf16=True)
    scaler.dtype, scaler.scaler = torch.float16, torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    return scaler


def test_loss_scaling_changes_nothing_in_exact_arithmetic():
    weights = [nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2)]
    for weight, scaler in zip(weights, (AmpScaler("cpu"), scaled_on_cpu(1024.0)), strict=True):
        scaler.step((weight**2).sum(), torch.optim.SGD([weight], lr=0.5), [weight], step=0)
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.tensor([1.0, 2.0]))


def test_an_overflow_under_loss_scaling_skips_and_rescales_then_stops():
    weight = nn.Parameter(torch.zeros(1))
    scaler, optimizer = scaled_on_cpu(4.0), torch.optim.SGD([weight], lr=1.0)
    for step, scale in enumerate((2.0, 1.0)):
        scaler.step(weight.sqrt().sum(), optimizer, [weight], step)
        assert (scaler.scaler.get_scale(), weight.item()) == (scale, 0.0)
    with pytest.raises(NonFiniteLoss, match="step 2: the gradient's norm"):  # no scale left to blame
        scaler.step(weight.sqrt().sum(), optimizer, [weight], 2)
    optimizer.zero_grad()
    scaler = scaled_on_cpu(4.0)
    scaler.step(weight.sqrt().sum(), optimizer, [weight], 0)
    scaler.step(3 * weight.sum(), optimizer, [weight], 1)  # a finite step goes through after a skipped one
    assert weight.item() == pytest.approx(-1.0)  # clipped to norm 1


def test_scale_survives_a_round_trip_and_no_scale_is_no_state():
    weight = nn.Parameter(torch.ones(1))
    scaler = scaled_on_cpu(8.0)
    scaler.step(weight.sum(), torch.optim.SGD([weight], lr=0.1), [weight], step=0)
    again = scaled_on_cpu(2.0)
    again.load_state_dict(scaler.state_dict())
    assert again.state_dict() == scaler.state_dict()
    assert again.state_dict()["scale"] == 8.0
    plain = AmpScaler("cpu")
    plain.load_state_dict(plain.state_dict())
    plain.load_state_dict(scaler.state_dict())  # a run begun on a GPU goes on here
    assert plain.state_dict() == {}


@pytest.mark.cuda
@no_cuda
def test_cuda_takes_bf16_where_the_gpu_has_it_and_scaled_fp16_elsewhere():
    scaler, model = AmpScaler("cuda"), net().cuda()
    has_bf16 = torch.cuda.get_device_capability() >= (8, 0)
    assert scaler.dtype is (torch.bfloat16 if has_bf16 else torch.float16)
    assert scaler.scaler.is_enabled() is not has_bf16
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = (part.cuda() for part in batch())
    losses = []
    for step in range(20):
        with scaler.autocast():
            logits = model(x)
            loss = F.cross_entropy(logits, y)
        assert (logits.dtype, loss.dtype) == (scaler.dtype, torch.float32)
        scaler.step(loss, optimizer, model.parameters(), step)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert not AmpScaler("cuda", enabled=False).enabled


@pytest.mark.cuda
@no_cuda
def test_cuda_fp16_scaling_state_round_trip():
    scaler, weight = AmpScaler("cuda"), nn.Parameter(torch.ones(1, device="cuda"))
    scaler.dtype, scaler.scaler = torch.float16, torch.amp.GradScaler("cuda", init_scale=8.0)
    scaler.step(weight.sum(), torch.optim.SGD([weight], lr=0.1), [weight], step=0)
    again = AmpScaler("cuda")
    again.scaler = torch.amp.GradScaler("cuda")
    again.load_state_dict(scaler.state_dict())
    assert again.state_dict() == scaler.state_dict() != {}


# ---- the average


def test_ema_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema, value = EMA(model, decay=0.3), 0.0
    for n in range(1, 8):
        nn.init.constant_(model.weight, float(n))
        ema.update(model)
        decay = min(0.3, (1 + n) / (10 + n))  # 2/11, 3/12, 4/13 > 0.3 from then on
        value = decay * value + (1 - decay) * n
        assert ema.module.weight.item() == pytest.approx(value, abs=1e-6)
    assert not ema.module.weight.requires_grad


def test_ema_averages_float_buffers_and_copies_counts():
    model = net().train()
    ema = EMA(model, decay=0.5)
    for seed in range(3):
        model(batch(seed=seed)[0])
        before = ema.module[1].running_var.clone()
        ema.update(model)
        decay = min(0.5, (2 + seed) / (11 + seed))
        wanted = decay * before + (1 - decay) * model[1].running_var
        torch.testing.assert_close(ema.module[1].running_var, wanted)
    assert ema.module[1].num_batches_tracked.item() == 3
    assert ema.module[1].num_batches_tracked.dtype is torch.int64
    assert not ema.module.training


def test_ema_shares_no_memory_with_the_model():
    model = net()
    ema = EMA(model)
    ema.update(model)
    shared = {t.data_ptr() for t in model.state_dict().values()} & {
        t.data_ptr() for t in ema.module.state_dict().values()
    }
    assert not shared
    assert model[0].weight.requires_grad
    assert model.training


class Tied(nn.Module):
    """One weight under two names, and no buffers."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_ema_moves_tied_weights_once():
    model = Tied()
    nn.init.zeros_(model.embed.weight)
    ema = EMA(model)
    nn.init.ones_(model.embed.weight)
    ema.update(model)
    torch.testing.assert_close(ema.module.embed.weight, torch.full((5, 3), 9 / 11))
    assert ema.module.head.weight is ema.module.embed.weight


def test_ema_goes_on_after_a_round_trip(tmp_path):
    model = net()
    one = EMA(model, decay=0.9)
    perturb = torch.Generator().manual_seed(0)

    def move(*averages: EMA) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=perturb))
        for average in averages:
            average.update(model)

    for _ in range(3):
        move(one)
    torch.save(one.state_dict(), tmp_path / "ema.pt")
    two = EMA(net(seed=9), decay=0.9)
    two.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    for _ in range(3):
        move(one, two)
    assert same(dict(one.module.state_dict()), dict(two.module.state_dict()))
    assert one.updates == two.updates == 6


# ---- early stopping


def test_stopper_counts_checks_without_improvement():
    stopper = EarlyStopper(patience=2, mode="max")
    assert [stopper.update(value) for value in (0.5, 0.6, 0.6, 0.7)] == [True, True, False, True]
    assert not stopper.should_stop
    assert [stopper.update(value) for value in (0.7, 0.1)] == [False, False]
    assert (stopper.should_stop, stopper.best) == (True, 0.7)


def test_stopper_min_and_min_delta():
    stopper = EarlyStopper(patience=3, mode="min", min_delta=0.125)
    assert [stopper.update(value) for value in (1.0, 0.875, 0.75, 0.5)] == [True, False, True, True]
    assert stopper.best == 0.5


def test_nan_is_never_better():
    stopper = EarlyStopper(patience=3, mode="min")
    assert not stopper.update(math.nan)
    assert stopper.best is None
    assert stopper.update(5.0)
    assert not stopper.update(math.nan)
    assert (stopper.best, stopper.bad) == (5.0, 1)


def test_patience_0_never_stops():
    stopper = EarlyStopper(patience=0)
    for _ in range(100):
        stopper.update(0.0)
    assert not stopper.should_stop


def test_stopper_state_and_mode():
    one, two = EarlyStopper(2), EarlyStopper(2)
    for value in (1.0, 0.5):
        one.update(value)
    two.load_state_dict(one.state_dict())
    assert not two.update(0.9)
    assert two.should_stop
    with pytest.raises(ValueError, match="mode is 'best', wanted 'min' or 'max'"):
        EarlyStopper(mode="best")


# ---- the file: what goes in comes out


def ckpt(**changes: object) -> dict:
    held = {key: {} for key in REQUIRED} | {"project": "vision", "epoch": 3}
    return held | {"model": {"w": torch.randn(5, 3), "n": torch.tensor(7)}} | changes


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


# ---- the file: written whole or not at all


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


# ---- the file: refused in words


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["torch zip", "replaced data.pkl", "plain pickle"])
def test_a_pickle_bomb_does_not_go_off(tmp_path, kind):
    path, mark = tmp_path / "best.pt", tmp_path / "mark"
    if kind == "torch zip":
        torch.save({**ckpt(), "format": 1, "config": Bomb(mark)}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"format": 1, "x": Bomb(mark)}))
    else:
        save_ckpt(tmp_path / "good.pt", ckpt())
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                bomb = pickle.dumps(Bomb(mark), protocol=2)
                bad.writestr(name, bomb if name.endswith("data.pkl") else good.read(name))
    words = "another kind of file" if kind == "plain pickle" else "pickled objects, which can run code .*system"
    with pytest.raises(CheckpointError, match=rf"best\.pt: .*{words}"):
        load_ckpt(path)
    assert not mark.exists()
    if kind == "torch zip":  # the bomb is a real one
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_a_device_is_no_checkpoint():
    with pytest.raises(CheckpointError, match="/dev/zero: cannot be read \\(not a regular file\\)"):
        load_ckpt("/dev/zero")


def test_a_cut_file_is_refused_at_every_length(tmp_path):
    path, cut = tmp_path / "best.pt", tmp_path / "cut.pt"
    save_ckpt(path, ckpt())
    data = path.read_bytes()
    for length in [*range(0, len(data), 7), *range(len(data) - 60, len(data))]:
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=rf"cut\.pt: {length} bytes that are not a whole checkpoint"):
            load_ckpt(cut)


def test_a_flipped_byte_is_refused_or_harmless(tmp_path):
    path, flipped = tmp_path / "best.pt", tmp_path / "flipped.pt"
    save_ckpt(path, ckpt())
    data, wanted = path.read_bytes(), load_ckpt(path)
    refused, rng = 0, random.Random(0)
    for place in rng.sample(range(len(data)), 600) + list(range(len(data) - 300, len(data))):
        flipped.write_bytes(data[:place] + bytes([data[place] ^ rng.choice([1, 8, 128, 255])]) + data[place + 1 :])
        try:
            held = load_ckpt(flipped)
        except CheckpointError as error:  # any other exception fails the test
            assert str(error).startswith(f"{flipped}: ")  # noqa: PT017
            refused += 1
        else:
            assert same(held, wanted), place
    assert refused > 300


def test_a_damaged_directory_cannot_change_weights(tmp_path):
    """A flag bit of one entry, at which torch alone reads that entry's weights as whatever lay in memory."""
    path = tmp_path / "best.pt"
    save_ckpt(path, ckpt())
    data, wanted = bytearray(path.read_bytes()), load_ckpt(path)
    entry = data.rindex(b"archive/data/0" if b"archive/data/0" in data else b"/data/0") - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    for place in range(entry + 4, entry + 46):
        for mask in (1, 255):
            data[place] ^= mask
            path.write_bytes(data)
            data[place] ^= mask
            try:
                held = load_ckpt(path)
            except CheckpointError:
                continue
            assert same(held, wanted), (place - entry, mask)


def write_with(path: Path, **changes: object) -> Path:
    torch.save({k: v for k, v in (ckpt() | {"format": 1} | changes).items() if v is not Ellipsis}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"project": "nlp"}, "a checkpoint of project 'nlp', wanted 'vision'; use that project's commands"),
        ({"format": 2}, "format 2, this code reads format 1; use the release that wrote it, or update this one"),
        ({"format": torch.ones(2)}, r"format tensor\(.*, this code reads format 1"),
        ({"format": True}, "format True, this code reads format 1"),
        ({"format": ...}, "found no 'format' key, so not written by save_ckpt"),
        ({"golden": ..., "assets": ...}, "lacks assets, golden; wanted project, .*: train again"),
    ],
)
def test_wrong_contents(tmp_path, changes, words):
    with pytest.raises(CheckpointError, match=rf"a\.pt: {words}"):
        load_ckpt(write_with(tmp_path / "a.pt", **changes), project="vision")


def test_other_files(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(ckpt(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("dear reader\n" * 100)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "text")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10**6)
    for name, words in {
        "list.pt": "no 'format' key",
        "legacy.pt": "not a whole checkpoint",
        "empty.pt": "0 bytes that are not a whole checkpoint",
        "text.pt": "1200 bytes that are not a whole checkpoint .*copy it again or train again",
        "zip.pt": "damaged, or not written by save_ckpt",
        "packed.pt": "archive/data.pkl is compressed",
        ".": r"cannot be read \(Is a directory\); wanted a file such as best.pt",
        "text.pt/a.pt": r"cannot be read \(Not a directory\)",
        "none.pt": "no such file; train first, or pass the --ckpt of a finished run",
    }.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            load_ckpt(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission_to_read(tmp_path):
    save_ckpt(tmp_path / "a.pt", ckpt())
    (tmp_path / "a.pt").chmod(0)
    with pytest.raises(CheckpointError, match=r"a\.pt: cannot be read \(Permission denied\)"):
        load_ckpt(tmp_path / "a.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_not_the_files_fault(tmp_path):
    save_ckpt(tmp_path / "a.pt", ckpt())
    with pytest.raises(UserError, match=r"device cuda: not on this machine .*; pass --device cpu"):
        load_ckpt(tmp_path / "a.pt", device="cuda")


@pytest.mark.cuda
@no_cuda
def test_saved_on_cuda_loads_on_cpu_and_back(tmp_path):
    held = ckpt(model={"w": torch.randn(3, device="cuda")})
    save_ckpt(tmp_path / "a.pt", held)
    assert torch.equal(load_ckpt(tmp_path / "a.pt")["model"]["w"], held["model"]["w"].cpu())
    assert load_ckpt(tmp_path / "a.pt", device="cuda")["model"]["w"].is_cuda
