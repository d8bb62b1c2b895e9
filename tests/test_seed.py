"""One seed repeats everything that draws numbers, in this process and in loader workers."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common.seed import seed_all, seed_worker


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(3).tolist(), torch.randperm(9).tolist()


@pytest.mark.parametrize("seed", [0, 42, 2**32 + 1, 2**40])
def test_the_same_seed_draws_the_same(seed):
    seed_all(seed)
    first = draws()
    assert first != draws()
    seed_all(seed)
    assert first == draws()
    seed_all(seed + 1)
    others = draws()
    assert all(one != other for one, other in zip(first, others, strict=True))


class Draws(Dataset):
    """Each item is what its worker drew for it."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]


def epoch() -> list[list[float]]:
    loader = DataLoader(Draws(), batch_size=None, num_workers=2, worker_init_fn=seed_worker)
    return [list(item) for item in loader]


def test_two_workers_draw_different_numbers_that_repeat():
    seed_all(1)
    first, second = epoch(), epoch()
    seed_all(1)
    assert [first, second] == [epoch(), epoch()]
    numbers = [number for item in first + second for number in item]
    assert len(set(numbers)) == len(numbers)  # neither workers nor epochs share a stream
    seed_all(2)
    assert epoch() != first


def train(workers: int) -> dict[str, torch.Tensor]:
    seed_all(7)
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    photos = torch.linspace(0, 1, 60).reshape(20, 1, 3)
    for number in range(3):
        seed_all(7 + number)
        for x in DataLoader(photos, 4, shuffle=True, num_workers=workers, worker_init_fn=seed_worker):
            model(x + torch.randn_like(x)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def test_weights_repeat_to_the_bit_with_0_and_2_workers():
    first, second, with_workers = train(0), train(0), train(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], with_workers[name]) for name in first)


def test_deterministic_mode_is_switched_on_and_stays(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        seed_all(0)
        assert not torch.are_deterministic_algorithms_enabled()
        seed_all(0, deterministic=True)
        seed_all(1)  # as at the top of every epoch
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        with pytest.raises(
            RuntimeError, match="put_ does not have a deterministic implementation"
        ):  # a kernel that does not repeat, by name
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    finally:
        torch.use_deterministic_algorithms(False)
