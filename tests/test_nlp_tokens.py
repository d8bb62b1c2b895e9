"""From texts to tokens and n-grams: one form for every text, byte-pair merges, hashed n-grams."""

from __future__ import annotations

import json
import re
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from project_nlp_intent.bpe import ORDER, PIECES, Bpe
from project_nlp_intent.data import build_vocab, encode, tokenize
from project_nlp_intent.encode import TOKENIZERS, Encoder
from project_nlp_intent.ngrams import Ngrams
from project_nlp_intent.synthetic import PATTERNS, make_text
from project_nlp_intent.text import TextError, clean, script, words

SENTENCES = [
    clean(make_text(label, np.random.default_rng([n, i]), True)) for n, label in enumerate(PATTERNS) for i in range(40)
]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" x ", "x"),
        ("x\n", "x"),
        ("\ufeffHello\tWORLD\r\n", "hello world"),
        ("ＡＢＣ Straße", "ａｂｃ strasse"),
        (unicodedata.normalize("NFD", "환불 안내"), "환불 안내"),
        ("Où est MA\u00a0commande", "où est ma commande"),
        ("zero\u200bwidth\u00ad", "zerowidth"),
        ("\ud83d lone", "\ufffd lone"),
        ("a\x00b", "a b"),
    ],
)
def test_clean_gives_one_form(text, wanted):
    assert clean(text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [(None, "null"), (7, "a int"), (["a"], "a list"), ("", "empty"), (" \n\t\u200b", "empty"), ("\x00", "empty")],
)
def test_clean_refuses_in_words(text, why):
    with pytest.raises(TextError, match=why):
        clean(text)


@given(st.text(min_size=1))
def test_clean_is_stable_and_words_lose_nothing(text):
    try:
        cleaned = clean(text)
    except TextError:
        return
    assert clean(cleaned) == cleaned
    assert "".join(words(cleaned)) == "".join(cleaned.split())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("what's up?", ["what", "'", "s", "up", "?"]),
        ("좋아요👍🏽👍 굿", ["좋아요", "👍🏽", "👍", "굿"]),
        ("👨‍👩‍👧🇰🇷🇩🇪❤️", ["👨‍👩‍👧", "🇰🇷", "🇩🇪", "❤️"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("v2 order_nr", ["v2", "order_nr"]),
    ],
)
def test_words_marks_and_emoji(text, wanted):
    assert tokenize(clean(text)) == wanted


def test_script():
    assert [script(text) for text in ("hello", "환불", "환불 주세요 refund", "привет", "12 !")] == [
        "latin", "hangul", "mixed", "cyrillic", "none",
    ]  # fmt: skip


def test_vocab_ranks_by_count_and_rare_words_are_unknown():
    vocab = build_vocab(["b a a", "a b c"], max_vocab=10)
    assert vocab == {"<pad>": 0, "<unk>": 1, "a": 2, "b": 3}
    assert encode("c b a a", vocab, max_len=3) == [1, 3, 2]
    assert len(build_vocab(SENTENCES, max_vocab=20)) == 20


def reference_bpe(texts: list[str], merges: int) -> Tokenizer:
    """The tokenizers package, set to the same pieces and bytes."""
    reference = Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES.pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    reference.train_from_iterator(texts, trainer)
    return reference


def test_bpe_learns_and_splits_as_the_tokenizers_package_does():
    bpe, reference = Bpe.learn(SENTENCES, max_vocab=257 + 700), reference_bpe(SENTENCES, 700)
    held = json.loads(reference.to_str())["model"]["merges"]
    assert len(held) == len(bpe.merges) == 700
    for text in [*SENTENCES, "unseen wörds 뷁 🙂🙂 ...!?", "a" * 50, "  two  blanks "]:
        assert [i + 1 for i in reference.encode(text).ids] == bpe.encode(text)  # 0 pads here


@given(st.text())
def test_bpe_gives_every_text_back(text):
    bpe = Bpe.learn(SENTENCES[:100], max_vocab=400)
    text = text.encode("utf-8", "replace").decode()
    assert bpe.decode(bpe.encode(text)) == text


def test_bpe_pieces_cover_everything_and_small_sets_end_early():
    assert sorted(ORDER) == list(range(256))
    assert Bpe.learn(["ab ab"], max_vocab=1000).merges != []
    assert Bpe.learn(["abc"], max_vocab=1000).merges == []  # nothing comes twice


def jamo(text: str) -> str:
    """Hangul syllables taken apart, all else as it is."""
    return "".join(unicodedata.normalize("NFD", c) if "가" <= c <= "힣" else c for c in text)


def plain_ngrams(text: str, letters: tuple[int, int], runs: int, edges: int) -> list[str]:
    """What Ngrams hashes, found one by one."""
    found = []
    padded = jamo(f" {text} ")
    for n in range(letters[0], letters[1] + 1):
        windows = [padded[i : i + n] for i in range(len(padded) - n + 1)]
        hangul = "[\u1100-\u11ff]"
        ends = re.compile(f"({hangul}|.{hangul}).*({hangul}|{hangul}.)")
        found += [window for window in windows if " " not in window[1:-1] or ends.fullmatch(window)]
    parts = jamo(text).split(" ")
    for n in range(1, runs + 1):
        found += [f" {' '.join(parts[i : i + n])} " for i in range(len(parts) - n + 1)]
    for n in range(2, min(edges, len(padded)) + 1):
        found += [f"\n{padded[:n]}", f"{padded[-n:]}\n"]
    return found


def test_ngrams_are_those_found_one_by_one():
    lines = [" ".join(words(text)) for text in SENTENCES]
    ngrams = Ngrams.fit(lines, (2, 4), 2, most=100_000, edges=7)
    by_text = [set(plain_ngrams(line, (2, 4), 2, 7)) for line in lines]
    counts: dict[str, int] = {}
    for found in by_text:
        for gram in found:
            counts[gram] = counts.get(gram, 0) + 1
    kept = {gram for gram, n in counts.items() if n >= 2}
    assert len(ngrams) == len(kept)
    ids, weights, sizes, totals = ngrams.encode(lines)
    assert totals.tolist() == [len(plain_ngrams(line, (2, 4), 2, 7)) for line in lines]
    wanted = [sum(gram in kept for gram in plain_ngrams(line, (2, 4), 2, 7)) for line in lines]
    assert sizes.tolist() == wanted
    idf = {gram: np.log((1 + len(lines)) / (1 + counts[gram])) + 1 for gram in kept}
    first = np.array(sorted(idf[gram] for gram in plain_ngrams(lines[0], (2, 4), 2, 7) if gram in kept))
    assert np.sort(weights[: sizes[0]]) == pytest.approx(first / np.sqrt((first**2).sum()), rel=1e-5)
    assert ids.max() < len(ngrams)


def test_ngrams_of_a_text_do_not_depend_on_its_neighbours():
    lines = [" ".join(words(text)) for text in SENTENCES]
    ngrams = Ngrams.fit(lines, (2, 5), 2, most=2000, edges=8)
    assert len(ngrams) == 2000
    together = ngrams.encode(lines[:50])
    starts = np.concatenate([[0], together[2].cumsum()])
    for i in range(50):
        ids, weights, *_ = ngrams.encode([lines[i]])
        part = slice(starts[i], starts[i + 1])
        assert ids.tolist() == together[0][part].tolist()
        assert weights.tolist() == together[1][part].tolist()
    assert ngrams.encode(["ŷŷŷ", "x"])[2].tolist()[0] == 0


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_encoder_comes_back_from_its_assets(tokenizer):
    encoder = Encoder.fit(SENTENCES, tokenizer, max_len=8, max_vocab=600)
    again = Encoder(encoder.assets())
    texts = [*SENTENCES[:30], "qqqqq", "one two three four five six seven eight nine", "x" * 1000]
    one, other = encoder.encode(texts), again.encode(texts)
    for name, values in vars(one).items():
        assert np.array_equal(values, getattr(other, name)), name
    assert one.truncated[-2:].tolist() == [True, True]
    batch = one.batch([0, len(texts) - 1, 3])
    assert batch["tokens"].shape[1] <= encoder.max_tokens
    assert batch["tokens"].max() < encoder.vocab_size
    assert batch["offsets"].tolist()[0] == 0
    alone = one.batch([3])
    assert torch.equal(batch["tokens"][2, : alone["tokens"].shape[1]], alone["tokens"][0])
    assert torch.equal(batch["grams"][batch["offsets"][2] :], alone["grams"])


def test_a_text_of_which_nothing_is_known_is_blind():
    encoder = Encoder.fit(["where is my order", "where is my money", "my money"], "word", max_len=8, max_vocab=600)
    encoded = encoder.encode(["where", "ŷẑ ŷŷẑ", "wheree is", "mony", "xqwrz"])
    assert encoded.blind.tolist() == [False, True, False, False, True]
    assert encoded.unknown.tolist() == [0.0, 1.0, 0.5, 1.0, 1.0]


def test_auto_takes_letters_for_korean():
    assert Encoder.fit(SENTENCES, "auto", max_vocab=600).tokenizer == "word"
    rare = [f"말{i}했어요 {i}번째로" for i in range(100)]
    encoder = Encoder.fit(rare, "auto", max_len=4, max_vocab=600)
    assert encoder.tokenizer == encoder.assets()["tokenizer"] == "char"
    assert encoder.encode(["가나다 라마바 사아자", "가" * 16, "가" * 17]).truncated.tolist() == [False, False, True]
