"""The page at /dashboard in a real browser: traffic, drift, alarms, on a desk, on a phone, in the dark, by keyboard."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from common.dashboard import dashboard, report
from tests.browser import PROGRAM, chromium
from tests.conftest import ROOT
from tests.home_page import Parts, seen
from tests.monitored import FAST, ask, window
from tests.tiny_models import served

SOURCE = (ROOT / "common" / "dashboard.html").read_text(encoding="utf-8")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed (Debian: chromium)")


def test_the_page_is_of_one_piece_and_inserts_no_html():
    assert len(SOURCE.splitlines()) < 300
    addresses = [word for word in SOURCE.replace('"', " ").split() if "//" in word and word != "//"]
    assert addresses == ["http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"]  # names, nothing to load
    for tag, name, value in Parts(SOURCE).found:
        assert name not in ("src", "style", "action", "srcset", "onclick", "onload"), tag
        assert name != "href" or value == "data:,"
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "import"):
        assert word not in SOURCE
    policy = dict(dashboard(None, b"").headers)["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "</script><b>" not in report({"name": "</script><b>"})


def picture(page, path: Path) -> None:
    path.write_bytes(base64.b64decode(page.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


def text_of(page, selector: str) -> str:
    return " ".join(seen(page, selector))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Also where the pictures stay, to be looked at."""
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture(scope="module")
def url(folder):
    (folder / "policy.json").write_text(json.dumps(FAST))
    with served("tests.tiny_models", "--form", "watched", "--policy", folder / "policy.json") as url:
        yield url


@pytest.fixture(scope="module")
def page(folder):
    with chromium(folder / "profile") as page:
        page.ask("Emulation.setDeviceMetricsOverride", width=1280, height=1500, deviceScaleFactor=1, mobile=False)
        yield page
        assert page.complaints() == []


@pytest.mark.browser
def test_it_says_what_is_missing_then_shows_drift_and_the_alarm(page, url, folder):
    page.open(f"{url}/dashboard")
    page.wait("document.querySelector('#verdict').textContent === '✓ Nothing is firing'")
    wanted = "Too little data yet: label, conf, length, embedding are compared after 50"
    page.wait(f"document.querySelector('#drift').textContent.includes({json.dumps(wanted)})")
    assert "Too little data yet" in text_of(page, "#mix")
    assert "No labels have come back" in text_of(page, "#right")
    picture(page, folder / "1-empty.png")

    window(url, seed=1)
    page.wait("document.querySelectorAll('#drift tbody tr').length === 4")
    assert set(seen(page, "#drift td:nth-child(2)")) <= {"✓ same", "✓ may be chance"}
    assert {name.partition(" ")[0] for name in seen(page, "#mix th[scope=row]")} == {"calm", "shouting"}
    answer = ask(url, "/predict", {"text": "hello"})
    ask(url, "/feedback", {"req_id": answer["req_id"], "label": "calm"})
    page.wait("document.querySelector('#right').textContent.includes('1 joined')")
    assert "accuracy, expected without labels" in text_of(page, "#right")

    for seed in range(10, 13):
        if ask(url, "/alerts")["firing"]:
            break
        window(url, seed, length=60)
    page.wait("document.querySelector('#verdict').textContent.includes('drift_length')")
    assert page.run("document.querySelector('#verdict').className") == "warn"
    row = next(row for row in seen(page, "#alarms tbody tr") if row.startswith("drift_length"))
    assert "▲ firing" in row
    assert "Who writes such long texts?" in row
    assert next(row for row in seen(page, "#drift tbody tr") if row.startswith("length")).count("▲ drifted") == 1
    page.wait("document.querySelectorAll('#tiles svg polyline').length >= 4")
    page.run("document.querySelector('#past').open = true")
    assert any("firing" in row and "→" in row for row in seen(page, "#history tbody tr"))
    picture(page, folder / "2-drift.png")


@pytest.mark.browser
def test_it_fits_a_phone_and_the_dark(page, url, folder):
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        backgrounds.add(page.run("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == {"rgb(255, 255, 255)", "rgb(20, 24, 30)"}
    picture(page, folder / "3-dark.png")
    page.ask("Emulation.setDeviceMetricsOverride", width=360, height=1800, deviceScaleFactor=1, mobile=True)
    assert page.run("document.documentElement.scrollWidth") <= 360
    picture(page, folder / "4-phone.png")
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    page.ask("Emulation.setDeviceMetricsOverride", width=1280, height=1500, deviceScaleFactor=1, mobile=False)


def press(page, key: str, code: int) -> None:
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
        page.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)


@pytest.mark.browser
def test_the_keyboard_and_a_screen_reader_find_everything(page, url):
    page.open(f"{url}/dashboard")
    page.wait("!!document.querySelector('#drift tbody')")
    reached = []
    for _ in range(2):
        press(page, "Tab", 9)
        reached.append(page.run("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["pause", "SUMMARY"]
    page.run("document.querySelector('#pause').focus()")
    press(page, "Enter", 13)
    assert page.run("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
    press(page, "Enter", 13)
    assert seen(page, "#pause") == ["Pause"]
    tree = page.ask("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    assert [name for role, name in found if role in ("image", "table", "button", "heading") and not name] == []
    assert {"status", "table", "button", "heading", "rowheader"} <= {role for role, _ in found}
    assert page.run("[...document.querySelectorAll('table')].every(t => t.caption.textContent)")


@pytest.mark.browser
def test_a_server_that_is_gone_is_told(folder, page):
    with served("tests.tiny_models", "--form", "text") as url:
        page.open(f"{url}/dashboard")
        page.wait("document.querySelector('#verdict').textContent === '✓ Nothing is firing'")
        assert "brings no reference" in text_of(page, "#window")
    page.wait("document.querySelector('#verdict').textContent.startsWith('The server cannot be reached')")
    page.open("about:blank")


@pytest.mark.browser
def test_an_offline_report_is_the_same_page(page, url, folder):
    data = ask(url, "/dashboard/data")
    (folder / "drift.html").write_text(report(data), encoding="utf-8")
    page.open((folder / "drift.html").as_uri())
    page.wait("!!document.querySelector('#drift tbody')")
    assert page.run("document.querySelector('#live').hidden && document.querySelector('#traffic').hidden")
