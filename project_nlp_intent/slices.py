"""Accuracy on parts of a test set that are hard in their own ways: by length, script and unknown words.

    slices(texts, right, inside)["length"]["1-3"]        # {"texts": 120, "accuracy": 0.93}

Reads and writes nothing.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from project_nlp_intent.data import IntentDataset
from project_nlp_intent.text import script, words

LENGTHS = {"1-3 words": (1, 3), "4-7 words": (4, 7), "8-15 words": (8, 15), "16 words or more": (16, 1 << 30)}
UNKNOWN = {"none": (0, 0), "up to a fifth": (1e-9, 0.2), "up to a half": (0.2, 0.5), "more": (0.5, 1)}


def parts(texts: IntentDataset) -> dict[str, dict[str, np.ndarray]]:
    """{kind: {slice: (n,) bool}}; of each kind every text is in one slice."""
    lengths = np.array([len(words(text)) for text in texts.texts])
    scripts = np.array([script(text) for text in texts.texts])
    unknown = texts.encoded.unknown.round(6)
    return {
        "length": {name: (lengths >= low) & (lengths <= high) for name, (low, high) in LENGTHS.items()},
        "script": {str(name): scripts == name for name in sorted(set(scripts))},
        "unknown_words": {
            name: ((unknown > low) | (low == 0)) & (unknown <= high) for name, (low, high) in UNKNOWN.items()
        },
    }


def slices(texts: IntentDataset, right: Tensor, inside: Tensor) -> dict[str, dict[str, dict]]:
    """{kind: {slice: {"texts", "accuracy"}}} over the rows of `inside`; right, inside: (n,) bool. Empty slices go."""
    right, inside = right.numpy(), inside.numpy()
    return {
        kind: {name: _score(right, rows & inside) for name, rows in found.items() if (rows & inside).any()}
        for kind, found in parts(texts).items()
    }


def _score(right: np.ndarray, rows: np.ndarray) -> dict:
    return {"texts": int(rows.sum()), "accuracy": float(right[rows].mean())}
