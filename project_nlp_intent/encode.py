"""Cleaned texts → what the models take; everything here is learnt from the train set and kept in the checkpoint.

    encoder = Encoder.fit(texts, tokenizer="word", max_len=32, max_vocab=30_000)
    inputs = encoder.encode(texts).batch(range(64))      # {"tokens", "grams", "offsets", "weights"}
    same = Encoder(encoder.assets())                     # from a checkpoint

Reads and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from project_nlp_intent.bpe import Bpe
from project_nlp_intent.ngrams import Ngrams
from project_nlp_intent.text import script, words

PAD, UNKNOWN = 0, 1
TOKENIZERS = ("auto", "word", "bpe", "char")
LETTERWISE = ("hangul", "cjk", "hiragana", "katakana", "thai")  # endings make ever new words, or no blanks part them
EDGES = 8  # letters (jamo, of Hangul) with which their texts begin and end that count: there the mood of a verb stands
CHARS = 4  # letters that count as a token of max_len
BLIND = 0.2  # the share that a mistyped or inflected word of the train set still has, and mere noise has not
WORD_LETTERS = 16  # a text is cut at max_len times so many letters, whatever its words: one may be a megabyte long


def tokenize(text: str) -> list[str]:
    """Words, marks and emoji of a cleaned text."""
    return words(text)


def build_vocab(texts: Sequence[str], max_vocab: int = 30_000, min_count: int = 2) -> dict[str, int]:
    """{word: number}, the most frequent first; 0 pads, 1 stands for words that are not among them."""
    counts = Counter(word for text in texts for word in tokenize(text))
    ranked = sorted((word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word))
    return {"<pad>": PAD, "<unk>": UNKNOWN} | {word: i for i, word in enumerate(ranked[: max_vocab - 2], 2)}


def encode(text: str, vocab: dict[str, int], max_len: int) -> list[int]:
    """Numbers of the first `max_len` words."""
    return [vocab.get(word, UNKNOWN) for word in tokenize(text)[:max_len]]


@dataclass
class Encoded:
    """n texts as flat arrays. tokens and grams lie text after text; the three last are (n,), one value a text."""

    tokens: np.ndarray  # int64
    token_starts: np.ndarray  # (n + 1,)
    grams: np.ndarray  # int64
    weights: np.ndarray  # float32
    gram_starts: np.ndarray  # (n + 1,)
    truncated: np.ndarray  # bool: the models see its beginning alone
    unknown: np.ndarray  # float32: share of its words that the train set has not
    blind: np.ndarray  # bool: it has no known word, and under BLIND of its n-grams are known

    def __len__(self) -> int:
        return len(self.truncated)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """tokens (B, L), padded with 0 to the longest; grams (N,), weights (N,) and offsets (B,) of an EmbeddingBag."""
        rows = np.asarray(rows)
        places, owner, counts = _places(self.token_starts, rows)
        tokens = np.zeros((len(rows), max(1, counts.max())), np.int64)
        tokens[owner, np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts)] = self.tokens[places]
        places, _, counts = _places(self.gram_starts, rows)
        arrays = {
            "tokens": tokens,
            "grams": self.grams[places],
            "offsets": counts.cumsum() - counts,
            "weights": self.weights[places],
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _places(starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the items of `rows` lie in the flat array, the row in the batch of each, and how many each row has."""
    counts = starts[rows + 1] - starts[rows]
    owner = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts)
    return starts[rows][owner] + within, owner, counts


def suits(texts: Sequence[str]) -> str:
    """The tokenizer for texts: "char" where most are in a script of LETTERWISE, else "word"."""
    return "char" if sum(script(text) in LETTERWISE for text in texts) > len(texts) / 2 else "word"


class Encoder:
    """tokenizer ("word", "bpe" or "char"), its vocabulary, the words of the train set and its n-grams.

    max_len: words of a text that are looked at, and tokens (of the tokenizer "char" CHARS times as many).
    """

    def __init__(self, assets: dict):
        self.tokenizer, self.max_len = assets["tokenizer"], assets["max_len"]
        self.max_tokens = self.max_len * (CHARS if self.tokenizer == "char" else 1)
        self.known = frozenset(assets["words"])
        self.vocab = {token: i for i, token in enumerate(assets["vocab"])}
        self.bpe = Bpe(assets["merges"]) if self.tokenizer == "bpe" else None
        held = assets["ngrams"]
        keys, idf = held["keys"].numpy().view(np.uint64), held["idf"].numpy()
        self.ngrams = Ngrams(keys, idf, held["letters"], held["words"], held.get("edges", 0))

    @property
    def vocab_size(self) -> int:
        """Tokens, with the padding."""
        return len(self.bpe) if self.bpe else len(self.vocab)

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        tokenizer: str = "auto",
        max_len: int = 32,
        max_vocab: int = 30_000,
        letters: tuple[int, int] = (2, 5),
        word_runs: int = 2,
        max_ngrams: int = 200_000,
        edges: int = 0,
    ) -> Encoder:
        """Learn the vocabulary and the n-grams from cleaned texts. Raises ValueError for another tokenizer.

        tokenizer "auto": the one that `suits` the texts. edges 0: EDGES for texts which "char" suits, else none.
        """
        suited = suits(texts)
        tokenizer = suited if tokenizer == "auto" else tokenizer
        edges = edges or (EDGES if suited == "char" else 1)
        vocab, merges = build_vocab(texts, max_vocab), []
        known = sorted(build_vocab(texts, max_vocab, min_count=1).keys() - {"<pad>", "<unk>"})
        if tokenizer == "bpe":
            vocab, merges = {}, Bpe.learn(texts, max_vocab).merges
        elif tokenizer == "char":
            vocab = build_vocab([" ".join(_letters(text)) for text in texts], max_vocab)
        elif tokenizer != "word":
            raise ValueError(f"tokenizer is {tokenizer!r}, wanted 'word', 'bpe' or 'char'")
        lines = [" ".join(words(text)[:max_len]) for text in texts]
        ngrams = Ngrams.fit(lines, letters, word_runs, max_ngrams, edges=edges)
        assets = {"tokenizer": tokenizer, "max_len": max_len, "words": known, "vocab": list(vocab), "merges": merges}
        return cls(assets | {"ngrams": ngrams.state()})

    def assets(self) -> dict:
        """What a checkpoint holds of it, plain values and tensors."""
        merges = [list(pair) for pair in self.bpe.merges] if self.bpe else []
        held = {"tokenizer": self.tokenizer, "max_len": self.max_len, "words": sorted(self.known)}
        return held | {"vocab": list(self.vocab), "merges": merges, "ngrams": self.ngrams.state()}

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Cleaned texts, one or more."""
        limit = self.max_len * WORD_LETTERS
        split = [words(text[:limit]) for text in texts]
        tokens = [self._tokens(text[:limit], found) for text, found in zip(texts, split, strict=True)]
        sizes = zip(texts, split, tokens, strict=True)
        long = [len(t) > limit or len(w) > self.max_len or len(ids) > self.max_tokens for t, w, ids in sizes]
        tokens, split = [ids[: self.max_tokens] for ids in tokens], [found[: self.max_len] for found in split]
        seen = [sum(word in self.known for word in found) for found in split]
        grams, weights, gram_counts, gram_totals = self.ngrams.encode([" ".join(found) for found in split])
        return Encoded(
            tokens=np.array([token for ids in tokens for token in ids], np.int64),
            token_starts=_starts([len(ids) for ids in tokens]),
            grams=grams,
            weights=weights,
            gram_starts=_starts(gram_counts),
            truncated=np.array(long),
            unknown=np.array([1 - n / max(1, len(found)) for n, found in zip(seen, split, strict=True)], np.float32),
            blind=np.array([not n for n in seen]) & (gram_counts < BLIND * gram_totals),
        )

    def _tokens(self, text: str, found: list[str]) -> list[int]:
        if self.bpe:
            return self.bpe.encode(text)
        return [self.vocab.get(token, UNKNOWN) for token in (found if self.tokenizer == "word" else _letters(text))]


def _letters(text: str) -> list[str]:
    return list(text.replace(" ", "\u2581"))  # a visible blank, as SentencePiece writes it


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
