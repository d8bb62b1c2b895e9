"""Damage as fingers do it, for `eval --robustness` and the synthetic texts.

    typo("where is my order", rng)               # "where is my oder": one letter lost, doubled, swapped or replaced
    remove_spacing("내 주문 어디", rng)             # "내주문어디"
    change_case("where is my order", rng)        # "WHERE IS MY ORDER", or one letter in two

Reads and writes nothing.
"""

from __future__ import annotations

import unicodedata

import numpy as np

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
BESIDE = {
    letter: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in ROWS for i, letter in enumerate(row)
}  # keys left and right


def typo(text: str, rng: np.random.Generator) -> str:
    """One slip in one word of three letters or more (of two in Hangul); a text without such a word stays."""
    places = [i for i, letter in enumerate(text) if letter.isalpha() and _in_word(text, i)]
    if not places:
        return text
    i = int(rng.choice(places))
    letter, kind = text[i], rng.integers(4)
    if kind == 0:
        return text[:i] + text[i + 1 :]
    if kind == 1:
        return text[:i] + letter + text[i:]
    if kind == 2 and i + 1 < len(text) and text[i + 1].isalpha():
        return text[:i] + text[i + 1] + letter + text[i + 2 :]
    return text[:i] + _neighbour(letter, rng) + text[i + 1 :]


def _in_word(text: str, i: int) -> bool:
    """Whether a neighbour on each side, or for Hangul on one side, is a letter too."""
    left, right = text[i - 1 : i].isalpha(), text[i + 1 : i + 2].isalpha()
    return (left or right) if "가" <= text[i] <= "힣" else (left and right)


def _neighbour(letter: str, rng: np.random.Generator) -> str:
    """A letter beside it on the keyboard; of a Hangul syllable another final consonant, or none."""
    if "가" <= letter <= "힣":
        parts = unicodedata.normalize("NFD", letter)
        ends = ["", *(chr(c) for c in range(0x11A8, 0x11C3))]
        return unicodedata.normalize("NFC", parts[:2] + str(rng.choice([end for end in ends if end != parts[2:]])))
    keys = BESIDE.get(letter.lower(), "")
    return str(rng.choice(list(keys))) if keys else letter


def remove_spacing(text: str, rng: np.random.Generator) -> str:
    """The text without blanks."""
    return "".join(text.split())


def change_case(text: str, rng: np.random.Generator) -> str:
    """All capitals, or every letter large or small by chance."""
    if rng.random() < 0.5:
        return text.upper()
    return "".join(letter.upper() if rng.random() < 0.5 else letter.lower() for letter in text)


DAMAGES = {"one typo": typo, "no spacing": remove_spacing, "other case": change_case}
