"""Byte-pair merges learnt from train: every text has tokens, and the tokens give the text back.

    bpe = Bpe.learn(texts, max_vocab=8000)
    ids = bpe.encode("어디까지 왔나요")         # 0 pads and is never among them
    bpe.decode(ids)                          # "어디까지 왔나요"

Gage 1994; for words, Sennrich, Haddow & Birch 2016; on the bytes of UTF-8 as in GPT-2. Ties between equally frequent
pairs fall as in the `tokenizers` package: to the pair of the earliest tokens. Reads and writes nothing.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache

PIECES = re.compile(r" ?\w+| ?[^\w\s]+|\s+")  # merges never cross from one to the next
PAD = 0
# the visible bytes first, as GPT-2 orders them: it decides ties alone
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
ORDER = [*_VISIBLE, *(b for b in range(256) if b not in set(_VISIBLE))]
FIRST = {byte: i + 1 for i, byte in enumerate(ORDER)}  # token of each byte; 0 pads


class Bpe:
    """Merges in the order they were learnt; tokens are 1 to 256 for the bytes, then one a merge."""

    def __init__(self, merges: list[tuple[int, int]]):
        self.merges = [tuple(pair) for pair in merges]
        self.token = {pair: 257 + i for i, pair in enumerate(self.merges)}
        self.bytes = [b"", *(bytes([byte]) for byte in ORDER)]
        for left, right in self.merges:
            self.bytes.append(self.bytes[left] + self.bytes[right])
        self._piece = lru_cache(maxsize=1 << 16)(self._merge)

    def __len__(self) -> int:
        """Size of the vocabulary, with the padding."""
        return len(self.bytes)

    @classmethod
    def learn(cls, texts: Iterable[str], max_vocab: int, min_count: int = 2) -> Bpe:
        """Merge the most frequent pair until there are `max_vocab` tokens, or no pair occurs `min_count` times."""
        counts = Counter(piece for text in texts for piece in PIECES.findall(text))
        pieces = [[FIRST[byte] for byte in piece.encode()] for piece in counts]
        times = list(counts.values())
        pairs: Counter[tuple[int, int]] = Counter()
        where: dict[tuple[int, int], set[int]] = defaultdict(set)  # pair → pieces that hold it, or once did
        for i, piece in enumerate(pieces):
            for pair in itertools.pairwise(piece):
                pairs[pair] += times[i]
                where[pair].add(i)
        heap = [(-count, pair) for pair, count in pairs.items()]
        heapq.heapify(heap)
        merges: list[tuple[int, int]] = []
        while heap and len(merges) + 257 < max_vocab:
            count, pair = heapq.heappop(heap)
            if -count != pairs[pair]:  # it changed since it was pushed
                if pairs[pair] > 0:
                    heapq.heappush(heap, (-pairs[pair], pair))
                continue
            if -count < min_count:
                break
            changed = _apply(pair, 257 + len(merges), pieces, times, pairs, where)
            merges.append(pair)
            for other in changed:  # a count that fell is pushed again when it comes up
                heapq.heappush(heap, (-pairs[other], other))
        return cls(merges)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return [token for piece in PIECES.findall(text) for token in self._piece(piece)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text again."""
        return b"".join(self.bytes[token] for token in tokens).decode("utf-8", "replace")

    def _merge(self, piece: str) -> tuple[int, ...]:
        tokens = [FIRST[byte] for byte in piece.encode("utf-8", "replace")]
        while len(tokens) > 1:
            best = min(itertools.pairwise(tokens), key=lambda pair: self.token.get(pair, 1 << 60))
            if best not in self.token:
                break
            tokens = _joined(tokens, best, self.token[best])
        return tuple(tokens)


def _joined(tokens: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    """`tokens` with every `pair`, from the left, as `merged`."""
    out, i, last = [], 0, len(tokens) - 1
    while i <= last:
        if i < last and (tokens[i], tokens[i + 1]) == pair:
            out.append(merged)
            i += 2
        else:
            out.append(tokens[i])
            i += 1
    return out


def _apply(pair: tuple, merged: int, pieces: list, times: list, pairs: Counter, where: dict) -> set[tuple[int, int]]:
    """Merge `pair` in the pieces that hold it, and count again there alone. Returns the pairs that are new."""
    new = set()
    for i in where.pop(pair):
        before, after = pieces[i], _joined(pieces[i], pair, merged)
        if len(after) == len(before):
            continue
        for old in itertools.pairwise(before):
            pairs[old] -= times[i]
        for fresh in itertools.pairwise(after):
            pairs[fresh] += times[i]
            if merged in fresh:
                where[fresh].add(i)
                new.add(fresh)
        pieces[i] = after
    pairs.pop(pair, None)
    return new
