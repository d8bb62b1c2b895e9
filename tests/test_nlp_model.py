"""The nets: padding and neighbours never change an answer, short and empty texts are taken."""

from __future__ import annotations

import pytest
import torch

from project_nlp_intent.data import OUT
from project_nlp_intent.encode import PAD, Encoder
from project_nlp_intent.model import ARCHS, TextCNN, TransformerEncoder, build_model
from project_nlp_intent.reject import SCORES, auroc, choose, recall_at, threshold

TEXTS = ["where is my order", "my order", "hi", "환불 해 주세요 where is it", "order order order order order"]
SIZES = {"dim": 8, "channels": 8, "hidden": 8, "dropout": 0.5, "gram_drop": 0.3, "token_drop": 0.2}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.fit([*TEXTS, *TEXTS], "word", max_len=8, max_vocab=600)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_text_is_answered_alike_alone_and_in_any_batch(arch, encoder):
    torch.manual_seed(0)
    model = build_model({**SIZES, "arch": arch}, 3, encoder)
    for name, parameter in model.named_parameters():  # n-gram weights start at zero, which would be no test
        torch.nn.init.normal_(parameter)
        if "embedding" in name:
            torch.nn.init.zeros_(parameter[PAD].detach())  # as it starts, and no gradient reaches it
    model.eval()
    encoded = encoder.encode([*TEXTS, "ŷŷŷ"])
    with torch.inference_mode():
        together = model(encoded.batch(range(len(encoded))))
        alone = torch.cat([model(encoded.batch([i])) for i in range(len(encoded))])
    assert together.shape == (6, 3)
    assert torch.isfinite(together).all()
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("net", [TextCNN, TransformerEncoder])
def test_padding_and_short_texts(net):
    torch.manual_seed(0)
    model = net(20, 4, dim=8).eval()
    short = torch.tensor([[3]])
    padded = torch.tensor([[3, 0, 0, 0, 0]])
    with torch.inference_mode():
        assert torch.allclose(model(short), model(padded), atol=1e-6)
        assert torch.isfinite(model(torch.zeros(2, 3, dtype=torch.long))).all()


def test_dropping_is_for_training_alone(encoder):
    model = build_model({**SIZES, "arch": "ngram+textcnn"}, 3, encoder)
    batch = encoder.encode(TEXTS).batch(range(5))
    with torch.no_grad():
        model.nets["ngram_linear"].bag.weight.normal_()
        one, other = (model.train().branches(batch)["ngram_linear"] for _ in range(2))
        assert not torch.equal(one, other)
        assert torch.equal(model.eval()(batch), model(batch))


def test_build_model_refuses_another_arch():
    with pytest.raises(ValueError, match=r"arch is 'bert', wanted one of ngram\+textcnn"):
        build_model({"arch": "bert"}, 2, None)


def test_scores_rank_a_sure_text_above_an_unsure_one():
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.9, 0.8]])
    for name, score in SCORES.items():
        assert score(sure).item() > score(unsure).item(), name
    assert SCORES["margin"](sure).item() == pytest.approx(9.0)


def test_auroc_and_recall_agree_with_counting():
    inside, outside = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 2.0, 5.0])
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in inside.tolist() for b in outside.tolist()]
    assert auroc(inside, outside) == pytest.approx(sum(pairs) / len(pairs))
    assert threshold(inside, 0.75) == 2.0
    assert recall_at(inside, outside, 0.75) == pytest.approx(1 / 3)
    assert threshold(inside, 1.0) == 1.0


def test_choose_takes_the_best_score_and_never_needs_out_of_scope_texts():
    torch.manual_seed(0)
    inside = torch.randn(200, 5)
    inside[:, 0] += 6
    outside = torch.randn(50, 5)
    logits, labels = torch.cat([inside, outside]), torch.tensor([0] * 200 + [OUT] * 50)
    found = choose(logits, labels, 0.9)
    assert found["auroc"][found["score"]] == max(found["auroc"].values())
    accepted = SCORES[found["score"]](inside.double()) >= found["threshold"]
    assert accepted.double().mean().item() == pytest.approx(0.9, abs=0.01)
    without = choose(inside, labels[:200], 0.9)
    assert (without["score"], without["auroc"]) == ("above_mean", {})
