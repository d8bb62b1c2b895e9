"""The page at /: what may run in it, and what a person sees who uses it in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.http_wire import Limits
from common.monitor_core import SlidingWindow
from common.page import home
from common.predictions import Route
from tests.browser import PROGRAM, chromium
from tests.conftest import ROOT
from tests.home_page import ANSWERS, Parts, error, fetched, seen, send
from tests.tiny_models import served

SOURCE = (ROOT / "common" / "page.html").read_text(encoding="utf-8")
TOKEN = "a-token-for-the-tests"


def pretended(name: str = "tiny", model: object = None, why: str = "") -> SimpleNamespace:
    """As much of a server as the page reads."""
    return SimpleNamespace(
        slot=SimpleNamespace(predictor=model),
        route=Route("/predict", "text", name=name),
        endpoints={"/health": None},
        limits=Limits(),
        tokens={},
        latencies=SlidingWindow(8),
        unavailable=lambda: why,
    )


# -- what the page is made of --


def test_the_page_is_small_and_of_one_piece():
    assert len(SOURCE.splitlines()) < 200
    addresses = [word for word in SOURCE.replace('"', " ").split() if "//" in word and word != "//"]
    assert addresses == ["http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"]  # names, nothing to load
    for tag, name, value in Parts(SOURCE).found:
        assert name not in ("src", "style", "action", "srcset", "onclick", "onload"), tag
        assert name != "href" or value == "data:,"


def test_nothing_is_inserted_as_html():
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "import"):
        assert word not in SOURCE
    for word in ("localStorage", "sessionStorage", "cookie", "indexedDB"):  # the token stays in memory
        assert word not in SOURCE


def test_every_input_has_a_label():
    found = Parts(SOURCE).found
    inputs = {value for tag, name, value in found if tag in ("input", "textarea") and name == "id"}
    assert inputs == {value for tag, name, value in found if tag == "label" and name == "for"}
    assert len(inputs) == 4


def test_the_policy_lets_exactly_the_own_script_and_style_run():
    reply = home(pretended(), None, b"")
    policy = dict(reply.headers)["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    parts = Parts(reply.body.decode())
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parts.inside[tag].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
        assert parts.tags.count(tag) == (2 if tag == "script" else 1)
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert dict(reply.headers)["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--<script>", "{{about}}", '“ü\u2028\\"'])
def test_a_strange_name_stays_a_name(name):
    model = SimpleNamespace(model_id=name, example=name)
    text = home(pretended(name, model), None, b"").body.decode()
    parts = Parts(text)
    assert parts.tags.count("script") == 2
    about = json.loads(parts.inside["data"])
    assert (about["name"], about["model_id"], about["example"]) == (name, name, name)
    assert "<" not in parts.inside["data"]


def test_while_the_model_is_loading_the_page_says_so():
    about = json.loads(Parts(home(pretended(why="the model is still loading"), None, b"").body.decode()).inside["data"])
    assert (about["why"], about["model_id"], about["p95"]) == ("the model is still loading", "", None)


def test_the_page_is_part_of_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["common"]
    assert any(Path("page.html").match(pattern) for pattern in shipped)


# -- in a browser --


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page
        # of all the tests: the page asked nobody else, and the policy had nothing to stop
        assert [url for url in page.requests() if not url.startswith(("http://127.0.0.1:", "data:"))] == []
        assert page.complaints() == []


@pytest.fixture(scope="module")
def texts():
    with served("tests.tiny_models", "--form", "text", ML_E2E_API_TOKEN=TOKEN) as url:
        yield url


@pytest.fixture(scope="module")
def series():
    with served("tests.tiny_models", "--form", "series") as url:
        yield url


@pytest.mark.browser
def test_texts_need_the_token_and_are_shown_as_text(page, texts):
    page.open(f"{texts}/")
    page.write("#lines", "HELLO THERE")
    send(page)
    assert error(page) == "wanted the header Authorization: Bearer TOKEN (status 401)"
    page.write("#token", TOKEN)
    send(page)
    assert seen(page, "#answers .bar span") == ["shouting", "90.9 %"]
    page.write("#lines", "<img src=x onerror=alert(1)>\n\nSTOP THAT")
    send(page)
    assert seen(page, "#answers article > p") == ["<img src=x onerror=alert(1)>", "STOP THAT"]
    assert seen(page, "#answers .bar span")[::2] == ["calm", "shouting"]
    assert seen(page, "#answers img") == []
    assert json.loads(seen(page, "#json")[0])["model_id"] == "tiny-1"
    page.open(f"{texts}/?again")
    assert page.run("document.querySelector('#token').value") == ""


def points(page, selector: str) -> list[tuple[float, ...]]:
    text = page.run(f"{ANSWERS}.querySelector('{selector}').getAttribute('points')")
    return [tuple(map(float, point.split(","))) for point in text.split()]


@pytest.mark.browser
def test_a_series_is_drawn_with_its_forecast(page, series):
    page.open(f"{series}/")
    assert page.run("document.querySelector('#numbers').value") == "1, 2, 4, 3"  # the model's example
    page.write("#numbers", "1, 1;1\n1 1\t1 1 9")
    send(page)
    mean, spread = 2.0, math.sqrt(7)
    facts = dict(zip(seen(page, "#answers dt"), seen(page, "#answers dd"), strict=True))
    assert float(facts["pred"]) == mean
    assert float(facts["lower"]) == pytest.approx(mean - spread, rel=1e-4)
    assert (facts["anomaly"], seen(page, "#answers .warn")) == ("yes", ["This is an anomaly."])
    line, forecast, band = (points(page, name) for name in (".series", ".pred", ".band"))
    assert len(line) == 8
    assert forecast[0] == line[-1]
    scale = (line[0][1] - line[-1][1]) / 8  # pixels for 1
    assert forecast[1][1] == pytest.approx(line[0][1] - scale * (mean - 1))
    ends = [line[0][1] - scale * (end - 1) for end in (mean - spread, mean + spread)]
    assert [y for _, y in band] == pytest.approx(ends)
    page.write("#numbers", "1, two, 3")
    send(page)
    assert error(page) == "“two” is not a number"
    page.write("#numbers", "1")
    send(page)
    assert error(page) == "wanted a list of 2 to 999 numbers (status 422)"


@pytest.mark.browser
def test_the_links_and_the_curl_line_work(page, texts):
    page.open(f"{texts}/")
    links = page.run("[...document.querySelectorAll('#links a')].map(a => a.href)")
    assert links == [
        f"{texts}{path}" for path in ("/dashboard", "/openapi.json", "/metrics", "/health", "/v2/models/shouting")
    ]
    assert all(map(fetched, links))
    curl = seen(page, "#curl")[0]
    assert curl.startswith(f'curl -s {texts}/predict -H "Authorization: Bearer $TOKEN" -d ')
    body = json.loads(curl.partition(" -d ")[2].strip("'"))
    assert json.loads(fetched(f"{texts}/predict", body, TOKEN))["label"] == "calm"


@pytest.mark.browser
def test_a_page_opened_too_early_gets_ready_by_itself(page, tmp_path):
    gate = tmp_path / "gate"
    with served("tests.tiny_models", "--load_gate", gate, ready=False) as url:
        page.open(f"{url}/")
        assert seen(page, "#facts dd")[:3] == ["none yet", "none yet", "no: the model is still loading"]
        page.write("#lines", "hello")
        send(page)
        assert error(page) == "the model is still loading (status 503)"
        gate.touch()
        page.wait("document.querySelectorAll('#facts dd')[2]?.textContent === 'yes'")
        assert seen(page, "#facts dd")[:2] == ["tiny-1", "20260102T030405"]
