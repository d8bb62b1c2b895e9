"""One form for every text, and its words.

    clean("  Où est\\nMA commande?")          # "où est ma commande?"
    words("où est ma commande?")             # ["où", "est", "ma", "commande", "?"]

Training, evaluation and serving clean alike, so "x", " x " and "x\\n" are one text. Reads and writes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_UNSEEN = dict.fromkeys(map(ord, "\ufeff\u200b\u2060\u00ad"))  # byte order mark, zero-width spaces, soft hyphen
_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
# one symbol with its variation selector and skin tone, others joined to it by U+200D, or a flag of two letters
_EMOJI = (
    "[\U0001f1e6-\U0001f1ff]{2}"
    "|[\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff][\ufe0f\u20e3\U0001f3fb-\U0001f3ff]*"
    "(?:\u200d[\u2190-\u2bff\U0001f000-\U0001faff][\ufe0f\u20e3\U0001f3fb-\U0001f3ff]*)*"
)


SCRIPTS = ("hangul", "latin", "cyrillic", "greek", "arabic", "cjk", "hiragana", "katakana", "thai")


class TextError(ValueError):
    """A text that cannot be read; the message says why, in words for the one who sent it."""


def clean(text: object) -> str:
    """NFC, case folded, blanks collapsed; accents stay. Raises TextError for what is no text, or empty."""
    if not isinstance(text, str):
        found = "null" if text is None else f"a {type(text).__name__}"
        raise TextError(f"the text is {found}, wanted a string")
    if not text.isascii():  # ASCII is in every normal form
        text = _SURROGATE.sub("\ufffd", text.translate(_UNSEEN))
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    text = _CONTROL.sub(" ", text).strip().casefold()
    if not text:
        raise TextError("the text is empty, wanted at least one letter")
    return text


def words(text: str) -> list[str]:
    """Words, marks and emoji of a cleaned text, in order; a mark or an emoji is a word of its own."""
    return _pattern().findall(text)


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern:
    """Combining marks belong to their word, as in Hindi or Thai; Python's \\w alone would cut there."""
    marks = [chr(c) for c in range(0x300, 0x3000) if unicodedata.category(chr(c)) in ("Mn", "Mc")]
    return re.compile(rf"{_EMOJI}|\w[\w{''.join(marks)}]*|\S")


def script(text: str) -> str:
    """The script most letters are of, such as "hangul" or "latin"; "mixed" (each under 70 %), "other", or "none"."""
    counts: dict[str, int] = {}
    for letter in text:
        if letter.isalpha():
            name = _script_of(letter)
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return "none"
    name = max(counts, key=counts.__getitem__)
    return name if counts[name] >= 0.7 * sum(counts.values()) else "mixed"


@lru_cache(maxsize=4096)
def _script_of(letter: str) -> str:
    name = unicodedata.name(letter, "other").split(" ", 1)[0].lower()
    return name if name in SCRIPTS else "other"
