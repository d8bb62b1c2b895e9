"""What the tests of the pages share: the parts of an HTML text, and what is done and seen in a browser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from urllib.request import Request, urlopen

ANSWERS = "document.querySelector('#answers')"


class Parts(HTMLParser):
    """The attributes of all elements, and the text inside of script and style."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.inside, self.tags = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [(tag, *attr) for attr in attrs]
        self.last = "data" if ("type", "application/json") in attrs else tag

    def handle_data(self, data):
        if self.tags and self.last in ("script", "style", "data"):
            self.inside[self.last] = self.inside.get(self.last, "") + data

    def handle_endtag(self, tag):
        self.last = ""


def send(page) -> None:
    page.run("document.querySelector('#send').click()")
    page.wait("!document.querySelector('#send').disabled")


def seen(page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def error(page) -> str:
    return seen(page, "#error")[0]


def fetched(url: str, body: dict | None = None, token: str = "") -> bytes:
    data, headers = json.dumps(body).encode() if body else None, {"Authorization": f"Bearer {token}"} if token else {}
    with urlopen(Request(url, data, headers)) as answer:
        return answer.read()
