"""inference and serve: one Predictor, one answer, one row a file."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.amp_ckpt import CheckpointError, load_ckpt, save_ckpt
from common.cli import UserError
from project_vision_cls import inference
from project_vision_cls.decode import PhotoError
from project_vision_cls.inference import Predictor, walk_photos, write_csv
from tests.conftest import COLOURS, ROOT, patch, python


@pytest.fixture
def odd_photos(tmp_path: Path) -> Path:
    """A folder with good, damaged, rotated, nested and strangely named files."""
    root = tmp_path / "odd"
    (root / "sub" / "deep").mkdir(parents=True)
    red = patch(COLOURS["red"], (60, 40), np.random.default_rng(0))
    exif = Image.Exif()
    exif[0x0112] = 6
    red.save(root / "a.jpg", exif=exif)
    red.save(root / 'comma, quote" and\nnewline.png')
    red.save(os.fsdecode(bytes(root) + b"/latin-\xe9.webp"))
    red.save(root / "sub" / "한국어.BMP")
    red.convert("RGBA").save(root / "sub" / "deep" / "z.PNG")
    (root / "broken.jpg").write_bytes((root / "a.jpg").read_bytes()[:200])
    (root / "empty.png").touch()
    (root / "text.jpeg").write_text("not a photo")
    (root / "notes.txt").write_text("passed over")
    (root / "._a.jpg").write_text("passed over")
    return root


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@contextmanager
def serving(ckpt: Path, *flags: str):
    """URL of a real server on a free port; it must end with status 0."""
    command = [sys.executable, "-W", "error", "-m", "project_vision_cls.serve", "--ckpt", str(ckpt), "--port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *flags], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            assert process.stdout.readline().startswith("ready"), "the server did not get ready"
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def post(url: str, body: dict) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(url + "/predict", json.dumps(body).encode(), timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def b64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_csv_http_and_python_give_the_same_probabilities(colour_photos, colour_run, tmp_path):
    files = list(walk_photos(colour_photos / "test"))
    predictor = Predictor.load(colour_run / "best.pt")
    alone = [predictor.predict([file])[0] for file in files]
    out = tmp_path / "preds.csv"
    done = python(
        "project_vision_cls.inference", "--ckpt", colour_run / "best.pt", "--input_dir", colour_photos / "test",
        "--out_csv", out, "--bs", 5,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = rows_of(out)
    assert [row["path"] for row in rows] == [file.relative_to(colour_photos / "test").as_posix() for file in files]
    with serving(colour_run / "best.pt") as url:
        one_by_one = [post(url, {"image_base64": b64(file)}) for file in files]
        status, together = post(url, {"images_base64": [b64(file) for file in files]})
    assert status == 200
    assert all(status == 200 for status, _ in one_by_one)
    for answer, row, (_, single), item in zip(alone, rows, one_by_one, together["items"], strict=True):
        assert (row["label"], int(row["pred"])) == (answer["label"], answer["pred"])
        assert single["label"] == item["label"] == answer["label"]
        for prob in (float(row["prob"]), single["prob"], item["prob"]):
            assert prob == pytest.approx(answer["prob"], abs=1e-5)
    assert {"pred", "label", "prob", "lat_ms", "p95", "alert", "req_id", "model_id"} <= one_by_one[0][1].keys()
    assert one_by_one[0][1]["model_id"] == rows[0]["model_id"] == predictor.model_id


def test_one_row_a_file_also_for_unreadable_ones(colour_run, odd_photos, tmp_path):
    done = python(
        "project_vision_cls.inference", "--ckpt", colour_run / "best.pt", "--input_dir", odd_photos,
        "--out_csv", tmp_path / "preds.csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["path"]: row for row in rows_of(tmp_path / "preds.csv")}
    good = {"a.jpg", 'comma, quote" and\nnewline.png', "latin-\udce9.webp", "sub/한국어.BMP", "sub/deep/z.PNG"}
    bad = {"broken.jpg": "truncated", "empty.png": "empty file", "text.jpeg": "not an image"}
    assert rows.keys() == good | bad.keys()
    assert {rows[name]["label"] for name in good} == {"red"}
    assert {rows[name]["status"] for name in good} == {"ok"}
    for name, reason in bad.items():
        assert reason in rows[name]["status"].lower()
        assert rows[name]["label"] == rows[name]["prob"] == ""


def test_other_files_are_counted_and_nothing_found_writes_nothing(colour_run, odd_photos, tmp_path, capsys):
    shared = ["--ckpt", str(colour_run / "best.pt"), "--out_csv", str(tmp_path / "p.csv")]
    inference.main([*shared, "--input_dir", str(odd_photos)])
    assert "passed over 1 .txt files" in capsys.readouterr().out
    before = (tmp_path / "p.csv").read_bytes()
    (tmp_path / "empty").mkdir()
    for wrong in (["--input_dir", str(tmp_path / "empty")], ["--input_list", str(tmp_path / "none.txt")]):
        with pytest.raises(UserError):
            inference.main([*shared, *wrong])
    assert (tmp_path / "p.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".csv", ".partial")) == ["p.csv"]


def test_a_list_of_files_in_its_own_order(colour_run, odd_photos, tmp_path):
    names = [str(odd_photos / "sub" / "deep" / "z.PNG"), str(odd_photos / "gone.jpg"), str(odd_photos / "a.jpg")]
    (tmp_path / "list.txt").write_text("\n".join(names))
    inference.main(
        ["--ckpt", str(colour_run / "best.pt"), "--input_list", str(tmp_path / "list.txt"), "--out_csv",
         str(tmp_path / "p.csv")]
    )  # fmt: skip
    rows = rows_of(tmp_path / "p.csv")
    assert [row["path"] for row in rows] == names
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode())  # as Windows has it
    assert list(map(str, inference._listed(tmp_path / "list.txt"))) == names
    assert [row["status"] == "ok" for row in rows] == [True, False, True]


def test_a_place_that_cannot_be_written_is_told_before_the_work(colour_run, odd_photos, tmp_path):
    (tmp_path / "taken").write_text("")
    for place, words in ((tmp_path, "is a folder"), (tmp_path / "taken" / "p.csv", "its folder cannot be made")):
        with pytest.raises(UserError, match=words):
            inference.main(
                ["--ckpt", str(colour_run / "best.pt"), "--input_dir", str(odd_photos), "--out_csv", str(place)]
            )
    assert not list(tmp_path.glob("*.partial"))


def test_an_interrupted_csv_goes_on_where_it_stopped(colour_run, odd_photos, tmp_path):
    predictor = Predictor.load(colour_run / "best.pt")
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    write_csv(predictor, walk_photos(odd_photos), odd_photos, whole, 2, False)
    content = whole.read_bytes()
    for size in range(0, len(content), 37):  # a kill may come after any byte
        (tmp_path / "cut.csv.partial").write_bytes(content[:size])
        write_csv(predictor, walk_photos(odd_photos), odd_photos, cut, 2, True)
        assert [row["path"] for row in rows_of(cut)] == [row["path"] for row in rows_of(whole)]
        assert cut.read_bytes().count(b"path,pred") == 1
    (tmp_path / "cut.csv.partial").write_bytes(content.replace(predictor.model_id.encode(), b"another_one!"))
    with pytest.raises(UserError, match="without --resume"):
        write_csv(predictor, walk_photos(odd_photos), odd_photos, cut, 2, True)


def test_memory_does_not_grow_with_the_number_of_photos(colour_run, odd_photos):
    """Two chunks are ahead of the reader, never more, however long the list."""
    predictor, taken = Predictor.load(colour_run / "best.pt"), 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield odd_photos / "a.jpg"

    results = inference.predict_files(predictor, endless(), bs=4)
    for _ in range(400):
        next(results)
    results.close()
    assert taken <= 400 + 2 * inference.CHUNK * 4


def test_a_bad_request_is_told_why_and_harms_nobody(colour_run, odd_photos):
    red = b64(odd_photos / "a.jpg")
    with serving(colour_run / "best.pt") as url:
        assert post(url, {"image_base64": "data:image/jpeg;base64," + red})[0] == 200
        for body, status, words in [
            ({"image_base64": "%%%"}, 422, "not base64"),
            ({"image_base64": b64(odd_photos / "broken.jpg")}, 422, "truncated"),
            ({"image_base64": b64(odd_photos / "text.jpeg")}, 422, "not an image"),
            ({"image_base64": 7}, 400, "wanted a string"),
            ({"picture": red}, 400, "image_base64"),
        ]:
            answered, reply = post(url, body)
            assert answered == status
            assert words in reply["error"].lower()
        status, mixed = post(url, {"images_base64": [red, "AAAA", red]})
        assert status == 200
        assert [item.get("label") for item in mixed["items"]] == ["red", None, "red"]
        assert "not an image" in mixed["items"][1]["error"]


def test_golden_inputs_catch_changed_weights(colour_run, tmp_path):
    predictor = Predictor.load(colour_run / "best.pt")
    predictor.check_golden()
    ckpt = load_ckpt(colour_run / "best.pt")
    ckpt["model"]["head.bias"] = ckpt["model"]["head.bias"] + torch.tensor([3.0, 0.0, 0.0])
    save_ckpt(tmp_path / "edited.pt", ckpt)
    with pytest.raises(CheckpointError, match="golden replay"):
        Predictor.load(tmp_path / "edited.pt").check_golden()


def test_predictor_in_python(colour_run, odd_photos):
    predictor = Predictor.load(colour_run / "best.pt")
    with Image.open(odd_photos / "a.jpg") as image:
        answers = predictor.predict([odd_photos / "a.jpg", (odd_photos / "a.jpg").read_bytes(), image])
    assert len({answer["label"] for answer in answers}) == 1
    for one, other in zip(answers[0]["top"], answers[1]["top"], strict=True):  # some CPUs sum rows of a batch unlike
        assert one == {"label": other["label"], "prob": pytest.approx(other["prob"], abs=1e-6)}
    assert answers[0]["top"][0]["label"] == answers[0]["label"]
    assert predictor.predict([]) == []
    with pytest.raises(PhotoError, match="empty file"):
        predictor.predict([odd_photos / "empty.png"])
