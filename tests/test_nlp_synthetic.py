"""The synthetic texts: repeatable, counted, Korean and English, never written over somebody else's files; the typos."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.cli import UserError
from project_nlp_intent import synthetic
from project_nlp_intent.synthetic import OOS, PATTERNS, SPLITS, make_texts
from project_nlp_intent.text import clean, script
from project_nlp_intent.typos import DAMAGES, change_case, remove_spacing, typo

COUNTS = {"train": 12, "val": 4, "test": 6}


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_counts_labels_and_no_text_twice(tmp_path):
    assert make_texts(tmp_path, 0, COUNTS, 5) == 11 * (12 + 4 + 6) + 10
    parts = {split: rows(tmp_path / f"{split}.jsonl") for split in SPLITS}
    for split, found in parts.items():
        labels = [row["label"] for row in found]
        assert {label: labels.count(label) for label in set(labels)} == {
            label: 5 if label == OOS else COUNTS[split] for label in PATTERNS if label != OOS or split != "train"
        }
    texts = [clean(row["text"]) for found in parts.values() for row in found]
    assert len(set(texts)) == len(texts)
    assert {"hangul", "latin"} <= {script(text) for text in texts}
    assert (tmp_path / "test.txt").read_text(encoding="utf-8").splitlines() == [row["text"] for row in parts["test"]]


def test_same_seed_same_files_and_other_seed_other_texts(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_texts(tmp_path / name, seed, COUNTS, 5)
    first, again, other = ((tmp_path / name / "train.jsonl").read_bytes() for name in "abc")
    assert first == again != other


def test_val_and_test_have_wordings_that_train_has_not():
    rng = np.random.default_rng(0)
    pattern = "[one|two|three] {item}"
    assert {synthetic.say(pattern, rng, False).split()[0] for _ in range(60)} == {"one", "two"}
    assert {synthetic.say(pattern, rng, True).split()[0] for _ in range(60)} == {"one", "two", "three"}


@pytest.mark.parametrize("label", PATTERNS)
def test_every_pattern_closes_its_brackets_and_fills_its_slots(label):
    rng = np.random.default_rng(0)
    for line in PATTERNS[label].strip().splitlines():
        for _ in range(5):
            text = synthetic.say(line, rng, True)
            assert text.strip()
            assert not set("[]{}|") & set(text), text


def test_refuses_a_folder_of_others(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not made by this command"):
        make_texts(tmp_path, 0, COUNTS, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    make_texts(tmp_path, 0, COUNTS, 5, force=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["where is my order", "내 주문은 어디까지 왔나요"])
def test_a_typo_changes_one_place_and_nothing_else(text):
    rng = np.random.default_rng(0)
    for _ in range(200):
        hurt = typo(text, rng)
        assert abs(len(hurt) - len(text)) <= 1
        before = next((i for i, (a, b) in enumerate(zip(text, hurt, strict=False)) if a != b), len(text))
        behind = next((i for i, (a, b) in enumerate(zip(text[::-1], hurt[::-1], strict=False)) if a != b), len(text))
        assert before + behind >= len(text) - 2
    assert any(typo(text, rng) != text for _ in range(5))
    assert typo("?! 12", rng) == "?! 12"


def test_spacing_and_case():
    rng = np.random.default_rng(0)
    assert remove_spacing("내 주문 어디", rng) == "내주문어디"
    for _ in range(20):
        assert change_case("where is it", rng).lower() == "where is it"
    assert list(DAMAGES) == ["one typo", "no spacing", "other case"]
