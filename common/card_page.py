"""A page of Markdown that remembers what it had to leave open.

page = Page("en")
page.head("data")
page.fact("licence", None, "data_licence")      # **Missing: Licence.** Write it to card.toml as ...
page.finished(), page.missing
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from common.card_words import say

MOST_ROWS = 200  # of a table; what is beyond is counted


class Page:
    """Lines, in one language."""

    def __init__(self, lang: str):
        self.lang, self.lines, self.missing = lang, [], []

    def say(self, words: str, **values: object) -> str:
        """The words of a key."""
        return say(self.lang, words, **values)

    def head(self, key: str) -> None:
        """A section."""
        self.lines += ["", f"## {self.say(key)}", ""]

    def text(self, line: str) -> None:
        """A paragraph or a list item."""
        self.lines.append(line)

    def fact(self, key: str, value: Any, toml_key: str) -> None:
        """What somebody has to know and say; named as missing where nobody did."""
        if value:
            self.text(f"- {self.say(key)}: {value}")
        else:
            self.miss(toml_key, self.say("write it", key=toml_key))

    def miss(self, what: str, further: str) -> None:
        """Something that is not known, and what to do about it."""
        self.missing.append(what)
        self.text("- " + self.say("missing", what=what, next=further))

    def table(self, names: list[str], rows: Iterable[list[Any]]) -> None:
        """Rows of cells; numbers are rounded to four digits."""
        rows = [[cell(value) for value in row] for row in rows]
        self.lines += ["", f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
        self.lines += [f"| {' | '.join(row)} |" for row in rows[:MOST_ROWS]]
        if len(rows) > MOST_ROWS:
            self.lines += ["", self.say("more", n=len(rows) - MOST_ROWS)]
        self.lines.append("")

    def finished(self) -> str:
        """The text; empty lines never come twice."""
        kept = [line for i, line in enumerate(self.lines) if line or (i and self.lines[i - 1])]
        return "\n".join(kept).strip("\n") + "\n"


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(part)}" for key, part in value.items())
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
