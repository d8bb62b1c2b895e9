"""The page at / of a server for photos, in a real browser: files chosen and dropped, broken ones, a phone, the dark."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.browser import PROGRAM, chromium
from tests.home_page import ANSWERS, error, fetched, seen, send
from tests.tiny_models import served


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
def vision(colour_run):
    with served("project_vision_cls.serve", "--ckpt", colour_run / "best.pt", "--max_body_mb", "1") as url:
        yield url


def encoded(photo: Path) -> str:
    return base64.b64encode(photo.read_bytes()).decode()


@pytest.mark.browser
def test_a_photo_gets_its_label_and_bars(page, vision, colour_photos):
    page.open(f"{vision}/")
    photo = colour_photos / "test" / "red" / "0.png"
    page.upload("#file", [photo])
    send(page)
    top = json.loads(fetched(f"{vision}/predict", {"image_base64": encoded(photo)}))["top"]
    shown = [(one["label"], f"{100 * one['prob']:.1f} %") for one in top]
    assert seen(page, "#answers .bar span") == [text for bar in shown for text in bar]
    assert top[0]["label"] == "red"
    widths = page.run("[...document.querySelectorAll('.bar')].map(e => e.lastChild.offsetWidth / e.offsetWidth)")
    assert widths == pytest.approx([one["prob"] for one in top], abs=0.02)
    assert page.run(f"{ANSWERS}.querySelector('img').decode().then(() => {ANSWERS}.querySelector('img').naturalWidth)")
    assert error(page) == ""
    assert seen(page, "#facts dd")[3].endswith(" ms")


@pytest.mark.browser
def test_several_photos_and_a_broken_one_among_them(page, vision, colour_photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no photo")
    page.open(f"{vision}/")
    blue, green = (colour_photos / "test" / name / "0.png" for name in ("blue", "green"))
    page.upload("#file", [blue, broken, green])
    send(page)
    first = "article => article.querySelector('.bar span, .warn').textContent"
    words = page.run(f"[...{ANSWERS}.querySelectorAll('article')].map({first})")
    assert (words[0], words[2]) == ("blue", "green")
    assert "not an image" in words[1]


@pytest.mark.browser
def test_a_broken_photo_is_an_error_in_words(page, vision, tmp_path):
    page.open(f"{vision}/")
    send(page)
    assert error(page) == "There is nothing to send yet."
    too_large = bytes(2_000_000)
    for data, words in [(b"this is no photo", "(status 422)"), (b"", "(status 422)"), (too_large, "1 MB at most")]:
        file = tmp_path / "photo.png"
        file.write_bytes(data)
        page.upload("#file", [file])
        send(page)
        assert words in error(page)
        assert seen(page, "#answers")[0] == ""


@pytest.mark.browser
def test_a_photo_can_be_dropped(page, vision, colour_photos):
    page.open(f"{vision}/")
    photo = encoded(colour_photos / "test" / "green" / "0.png")
    page.run(
        f"""(() => {{
            const data = new DataTransfer()
            const bytes = Uint8Array.from(atob("{photo}"), c => c.charCodeAt(0))
            data.items.add(new File([bytes], "green.png", {{type: "image/png"}}))
            const how = {{bubbles: true, cancelable: true, dataTransfer: data}}
            document.querySelector("#photo").dispatchEvent(new DragEvent("drop", how))
        }})()"""
    )
    send(page)
    assert seen(page, "#answers .bar span")[0] == "green"


@pytest.mark.browser
def test_the_page_fits_a_phone_and_the_dark(page, vision):
    page.open(f"{vision}/")
    backgrounds = set()
    for scheme in ("light", "dark"):
        page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        backgrounds.add(page.run("getComputedStyle(document.body).backgroundColor"))
    assert backgrounds == {"rgb(255, 255, 255)", "rgb(20, 24, 30)"}
    page.ask("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True)
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.ask("Emulation.clearDeviceMetricsOverride")
