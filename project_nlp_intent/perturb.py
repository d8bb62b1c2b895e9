"""Four ways to damage texts, from which to learn what damage costs the model.

    worse = perturbed("lost", "where is my order", 0.5, np.random.default_rng(0))       # "where order"

They are not the slips of fingers that evaluation judges by (typos.py), as what traffic brings will be others again.
strength: the share of the words that is hit, 0 to 1. Reads and writes nothing.
"""

from __future__ import annotations

import numpy as np


def perturbed(kind: str, text: str, strength: float, rng: np.random.Generator) -> str:
    """The text damaged in the way that is named, one of KINDS; one of which nothing would be left stays."""
    words = [KINDS[kind](word, rng) if rng.random() < strength else word + " " for word in text.split()]
    return "".join(words).strip() or text


def lost(word: str, rng: np.random.Generator) -> str:
    """Nothing."""
    return ""


def joined(word: str, rng: np.random.Generator) -> str:
    """The word, grown together with the next."""
    return word


def foreign(word: str, rng: np.random.Generator) -> str:
    """A word that nobody knows: the letters backwards."""
    return word[::-1] + " "


def shuffled(word: str, rng: np.random.Generator) -> str:
    """All its letters, in another order."""
    return "".join(rng.permutation(list(word))) + " "


KINDS = {function.__name__: function for function in (lost, joined, foreign, shuffled)}
