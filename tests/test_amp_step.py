"""A step that never spoils the weights, in fp32, in bfloat16 and under loss scaling."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.amp_ckpt import AmpScaler, NonFiniteLoss
from common.cli import UserError
from tests.checkpoints import batch, net, no_cuda, same


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
