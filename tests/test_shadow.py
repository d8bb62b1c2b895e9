"""A shadow gives way to the stable model, but is not starved, leaves no trace on the model, and is judged fairly."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.batcher import MicroBatcher
from common.canary import NEVER, Canary
from common.metrics import Metrics
from common.predictions import Prediction
from common.shadow import MOST_BEHIND, Shadow


class Net:
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))

    def decode(self, item):
        return torch.tensor(item)

    def predict_rows(self, rows):
        return [{"pred": value} for value in self.model(torch.stack(rows)).flatten().tolist()]


class Busy:
    """Stable, with work for so many more looks; at each, what the shadow had done until then."""

    def __init__(self, looks: float):
        self.looks, self.done, self.seen = looks, [], []

    def __call__(self) -> bool:
        self.looks -= 1
        self.seen.append(len(self.done))
        return self.looks >= 0


def shadowed(looks: float, patience_s: float = 3600.0) -> tuple[Shadow, Busy]:
    busy, net = Busy(looks), Net()
    shadow = Shadow(net, busy, patience_s)
    for layer in net.model.modules():
        layer.register_forward_hook(lambda *layer: busy.done.append(layer))
    return shadow, busy


def test_nothing_begins_while_stable_works():
    shadow, busy = shadowed(looks=5)
    row = shadow.decode([1.0, 2.0])
    assert busy.looks == -1
    assert not busy.done
    assert shadow.predict_rows([row, row]) == shadow.predictor.predict_rows([row, row])


def test_each_layer_waits_until_stable_is_idle():
    shadow, busy = shadowed(looks=0)
    layers = list(shadow.predictor.model)
    layers[0].register_forward_hook(lambda *layer: setattr(busy, "looks", 4))  # a request comes meanwhile
    shadow.predict_rows([torch.ones(2)])
    assert busy.seen.count(1) == 5  # the second layer looked until it was answered
    assert len(busy.done) == 4


def test_it_is_not_starved():
    shadow, busy = shadowed(looks=float("inf"), patience_s=0.064)
    assert shadow.most_s == pytest.approx(0.064 / MOST_BEHIND / 2)
    for _ in range(3):
        rows = [shadow.decode([1.0, 2.0]) for _ in range(5)]
        assert shadow.left_s <= 0
        assert len(shadow.predict_rows(rows)) == 5
        assert shadow.left_s == shadow.most_s  # anew for the next batch
    assert busy.seen


def test_the_model_keeps_no_hooks_also_after_an_error():
    shadow, _ = shadowed(looks=0)
    shadow.predict_rows([torch.ones(2)])
    with pytest.raises(RuntimeError):
        shadow.predict_rows([torch.ones(7)])
    assert not any(layer._forward_pre_hooks for layer in shadow.layers)
    assert len(shadow.layers) == 4


def test_a_predictor_without_layers_is_fine():
    class Plain:
        decode = staticmethod(lambda item: item)
        predict_rows = staticmethod(lambda rows: [{"pred": row} for row in rows])

    shadow = Shadow(Plain(), lambda: False, 1.0)
    assert shadow.predict_rows([shadow.decode(3)]) == [{"pred": 3}]
    assert shadow.layers == []


def canary_of(shadow: bool) -> Canary:
    """Of a server that does nothing, with a candidate that is ready."""
    args = SimpleNamespace(canary_patience_ms=1000, timeout_ms=2000)
    canary = Canary(SimpleNamespace(args=args, link=object(), metrics=Metrics()))
    canary.split = {**NEVER, "status": "running", "shadow": shadow, "share": 0.05}
    canary.predictor, canary.shadow, canary.batcher = object(), object(), MicroBatcher(print, queue=64)
    return canary


def request(number: int = 0) -> Prediction:
    connection = SimpleNamespace(request=SimpleNamespace(headers={}), req_id=f"r-{number}")
    return Prediction(connection, object(), object(), b"{}", float("inf"))


def test_a_hiccup_of_a_shadow_that_is_behind_is_not_held_against_it():
    canary = canary_of(shadow=True)
    for number in range(200):
        assert canary.deal(request(number)) is False
    assert len(canary.waiting) == canary.batcher.depth == MOST_BEHIND
    canary.stuck = True
    for number in range(200, 400):
        canary.deal(request(number))
    assert canary.evidence.take() is None


def test_a_shadow_whose_queue_fills_with_what_hangs_is_blamed():
    canary = canary_of(shadow=True)
    for number in range(400):
        canary.deal(request(number))
        for twin in list(canary.waiting):
            canary._take_twin(twin, "hung")
    assert canary.batcher.full
    outcomes = canary.evidence.take()["outcomes"]["0.5"]
    assert {fault for candidate, fault, *_ in outcomes if candidate} == {"hung"}
    assert len(outcomes) > 64 / 2


@pytest.mark.parametrize(("shadow", "outcomes"), [(True, 0), (False, 1)])
def test_a_shadowed_pair_whose_client_hung_up_speaks_for_neither_arm(shadow, outcomes):
    canary, job, twin = canary_of(shadow), request(), request()
    job.arm, job.share, job.twin = "stable", 0.05, twin
    twin.arm, twin.twin, canary.waiting[twin] = "shadow", job, None
    canary.batcher.reserve()
    canary.left(job)
    assert twin.abandoned
    assert not canary.waiting
    assert canary.batcher.depth == 0
    report = canary.evidence.take() or {"outcomes": {}}
    assert sum(map(len, report["outcomes"].values())) == outcomes
