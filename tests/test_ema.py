"""The moving average of the weights: by hand, of buffers and tied weights, and across a round trip."""

import pytest
import torch
from torch import nn

from common.amp_ckpt import EMA
from tests.checkpoints import batch, net, same


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
