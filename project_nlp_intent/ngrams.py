"""Texts → weighted n-grams of letters and words, so that typos, endings and unseen words are not lost.

    ngrams = Ngrams.fit(texts, letters=(2, 5), words=2, most=100_000, edges=8)
    ids, weights, counts, totals = ngrams.encode(texts)   # for nn.EmbeddingBag(len(ngrams), ...), mode "sum"

A batch is encoded at once: its texts lie in one array of letters, an n-gram is a window (start, end) of it, and its
hash is a difference of prefix sums, sum of letter[i] * BASE^i modulo 2^64, shifted back to the window's start (Rabin &
Karp 1987). What is kept of an n-gram is that hash; two of 100,000 share one by a chance of about 3e-10.
Reads and writes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
import torch

BASE = 0x9E3779B97F4A7C15  # any odd number with well-mixed bits
INVERSE = pow(BASE, -1, 1 << 64)
BLANK, BREAK = 32, 10  # what stands between words, and between texts
HANGUL = re.compile("[가-힣]+")
JAMO = (0x1100, 0x11FF)  # letters that Hangul syllables are made of
BLOCK = 512  # texts hashed at once: some 20,000 letters, which the processor's cache holds


class Ngrams:
    """The n-grams of a train set: `keys` (V,) their hashes, sorted, and `idf` (V,), how telling each is.

    letters: shortest and longest n-gram of letters. Hangul is taken apart into its letters (jamo), so that endings and
    slips of a finger change a few n-grams and not all. An n-gram stays within a word and its blanks, but for Hangul,
    where people put blanks as they like. words: longest run of words. edges: the first and the last letters of a text,
    two to this many, blanks among them, are n-grams of their own.
    """

    def __init__(self, keys: np.ndarray, idf: np.ndarray, letters: tuple[int, int], words: int, edges: int = 0):
        self.keys, self.idf = keys.astype(np.uint64), idf.astype(np.float32)
        self.letters, self.words, self.edges = tuple(letters), words, edges

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def fit(
        cls, texts: list[str], letters: tuple[int, int], words: int, most: int, min_texts: int = 2, edges: int = 0
    ) -> Ngrams:
        """Those in `min_texts` texts or more, the `most` frequent ones where there are more.

        idf = ln((1 + n) / (1 + texts with it)) + 1 over n texts, as in scikit-learn.
        """
        empty = cls(np.zeros(0), np.zeros(0), letters, words, edges)
        once = []  # each n-gram of a text, once
        for i in range(0, len(texts), BLOCK):
            hashes, rows = empty._hashes(texts[i : i + BLOCK])
            order = np.lexsort((hashes, rows))
            hashes, rows = hashes[order], rows[order]
            new = (np.diff(hashes, prepend=~hashes[:1]) != 0) | (np.diff(rows, prepend=-1) != 0)
            once.append(hashes[new])
        keys, counts = np.unique(np.concatenate(once), return_counts=True)
        keys, counts = keys[counts >= min_texts], counts[counts >= min_texts]
        if len(keys) > most:
            kept = np.sort(np.argsort(-counts, kind="stable")[:most])
            keys, counts = keys[kept], counts[kept]
        return cls(keys, np.log((1 + len(texts)) / (1 + counts)) + 1, letters, words, edges)

    def state(self) -> dict:
        """Plain values and tensors; the hashes as int64, which they are to the bit."""
        keys, idf = torch.from_numpy(self.keys.view(np.int64).copy()), torch.from_numpy(self.idf.copy())
        return {"keys": keys, "idf": idf, "letters": list(self.letters), "words": self.words, "edges": self.edges}

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Known n-grams (N,) of texts, text by text, and their weights (N,); how many each text has, known and in all.

        The words of the texts stand one blank apart. The weights of a text are its n-grams' idf over their Euclidean
        length: long and short texts weigh alike.
        """
        parts = [self._encode(texts[i : i + BLOCK]) for i in range(0, len(texts), BLOCK)]
        ids, weights, counts, totals = (np.concatenate(part) for part in zip(*parts, strict=True))
        return ids, weights, counts, totals

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        hashes, rows = self._hashes(texts)
        totals = np.bincount(rows, minlength=len(texts))
        if not len(self):
            return np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(len(texts), np.int64), totals
        ids = np.searchsorted(self.keys, hashes).clip(max=len(self) - 1)
        known = self.keys[ids] == hashes
        ids, rows = ids[known], rows[known]
        order = np.argsort(rows, kind="stable")
        ids, rows = ids[order], rows[order]
        weights = self.idf[ids]
        length = np.sqrt(np.bincount(rows, weights.astype(np.float64) ** 2, len(texts)))
        weights = (weights / length[rows]).astype(np.float32)
        return ids, weights, np.bincount(rows, minlength=len(texts)), totals

    def _hashes(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Hash and text of every n-gram, known or not; equal n-grams of a text come as often as it has them."""
        line = "".join(f"\n {text} " for text in texts) + "\n"  # no such text holds a line break
        line = HANGUL.sub(lambda syllables: unicodedata.normalize("NFD", syllables[0]), line)
        codes = np.frombuffer(line.encode("utf-32-le", "replace"), np.uint32)
        windows = [*self._letters(codes), *self._words(codes), *self._edges(codes)]
        start, end = (np.concatenate(part) for part in zip(*windows, strict=True))
        sums = _sums((codes + np.uint64(1)) * _powers(BASE, len(codes)))  # + 1: no letter is worth nothing
        hashes = (sums[end] - sums[start]) * _powers(INVERSE, len(codes))[start]
        row = _sums(codes == BREAK)[start + 1].astype(np.int64) - 1
        return hashes, row

    def _letters(self, codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Windows of n letters of one word, or of Hangul; the blanks on a word's two sides count as its letters."""
        breaks, blanks = (_sums(found).astype(np.int64) for found in (codes == BREAK, codes == BLANK))
        jamo = _sums((codes >= JAMO[0]) & (codes <= JAMO[1])).astype(np.int64)
        for n in range(self.letters[0], self.letters[1] + 1):
            start = np.arange(len(codes) - n + 1)
            end = start + n
            one_word = blanks[end - 1] <= blanks[start + 1]  # no blank but at the two ends
            hangul = (jamo[start + 2] > jamo[start]) & (jamo[end] > jamo[end - 2])
            start = start[(one_word | hangul) & (breaks[end] == breaks[start])]
            yield start, start + n

    def _words(self, codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Windows of n whole words, from the blank before them to the blank behind."""
        blank = np.flatnonzero(codes == BLANK)
        row = _sums(codes == BREAK)[blank]
        for n in range(1, self.words + 1):
            within = row[n:] == row[:-n]
            yield blank[:-n][within], blank[n:][within] + 1

    def _edges(self, codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Windows of the first n letters of a text with the break before them, and of the last n with that behind."""
        breaks = np.flatnonzero(codes == BREAK)
        before, behind = breaks[:-1], breaks[1:]
        for n in range(2, self.edges + 1):
            fits = behind - before > n
            yield before[fits], before[fits] + n + 1
            yield behind[fits] - n, behind[fits] + 1


def _powers(base: int, n: int) -> np.ndarray:
    """base^0 to base^(n - 1), modulo 2^64."""
    powers = np.full(n, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def _sums(values: np.ndarray) -> np.ndarray:
    """(n,) → (n + 1,): the sum of what stands before each place, modulo 2^64."""
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=sums[1:])
    return sums
