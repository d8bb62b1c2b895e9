"""eval, inference and serve: one Predictor, one answer, one row a line."""

from __future__ import annotations

import csv
import json
import tracemalloc
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image

from common import report
from common.amp_ckpt import CheckpointError, load_ckpt, save_ckpt
from common.cli import UserError
from project_nlp_intent import inference
from project_nlp_intent.inference import COLUMNS, Predictor, predict_texts, read_texts, write_rows
from project_nlp_intent.text import TextError
from tests.conftest import python
from tests.tiny_models import served


@pytest.fixture(scope="module")
def predictor(intent_run) -> Predictor:
    return Predictor.load(intent_run / "best.pt")


def csv_rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def post(url: str, body: dict) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(url + "/predict", json.dumps(body).encode(), timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_csv_jsonl_http_and_python_give_the_same_answers(intent_texts, intent_run, predictor, tmp_path):
    texts = (intent_texts / "test.txt").read_text(encoding="utf-8").splitlines()[:60]
    inp = tmp_path / "in.txt"
    inp.write_text("\n".join(texts) + "\n", encoding="utf-8")
    alone = [predictor.predict([text])[0] for text in texts]
    for out in ("preds.csv", "preds.jsonl"):
        inference.main(
            ["--ckpt", str(intent_run / "best.pt"), "--inp", str(inp), "--out", str(tmp_path / out), "--bs", "7"]
        )
    rows = csv_rows(tmp_path / "preds.csv")
    lines = [json.loads(line) for line in (tmp_path / "preds.jsonl").read_text().splitlines()]
    with served("project_nlp_intent.serve", "--ckpt", intent_run / "best.pt") as url:
        one_by_one = [post(url, {"text": text})[1] for text in texts]
        status, together = post(url, {"texts": texts})
        assert status == 200
        same = [post(url, {"text": text})[1] for text in ("order?", " order? ", "order?\n", "ORDER?")]
        bad = [post(url, {"text": text}) for text in ("", " \n")]
        wrong = [post(url, {"text": text}) for text in (7, None, ["hello"])]
        _, long = post(url, {"text": "where is my order " * 40})
        _, mixed = post(url, {"texts": ["hello", None, "hello"]})
    assert list(rows[0]) == list(lines[0]) == COLUMNS
    assert [row["text"] for row in rows] == [line["text"] for line in lines] == texts
    for answer, row, line, single, item in zip(alone, rows, lines, one_by_one, together["items"], strict=True):
        assert row["label"] == line["label"] == single["label"] == item["label"] == answer["label"]
        assert row["in_scope"] == str(single["in_scope"]) == str(line["in_scope"]) == str(answer["in_scope"])
        for found in (row["prob"], line["prob"], single["prob"], single["conf"], item["prob"]):
            assert float(found) == pytest.approx(answer["prob"], abs=1e-5)
        tops = (json.loads(row["top"]), line["top"], single["top"], item["top"])
        for top in tops:
            assert top[0]["label"] == answer["label"]
            assert [entry["prob"] for entry in top] == pytest.approx([e["prob"] for e in answer["top"]], abs=1e-5)
    assert {"pred", "label", "conf", "lat_ms", "p95", "alert", "req_id", "model_id"} <= one_by_one[0].keys()
    assert len({answer["prob"] for answer in same}) == 1
    assert [(status, "text is" in answer["error"]) for status, answer in bad] == [(422, True)] * 2
    assert [(status, "wanted a string" in answer["error"]) for status, answer in wrong] == [(400, True)] * 3
    assert (long["truncated"], one_by_one[0]["truncated"]) == (True, False)
    assert [item.get("label") for item in mixed["items"]] == ["greeting", None, "greeting"]


def test_one_row_a_line_also_for_empty_and_broken_ones(intent_run, predictor, tmp_path):
    path = tmp_path / "odd.txt"
    path.write_bytes("hello\r\n\n  \n환불해 주세요\u2028x\ncaf".encode() + b"\xe9\nlast".replace(b"\n", b"\n"))
    assert write_rows(predictor, read_texts(path), tmp_path / "out.csv", 4) == (6, 3)
    rows = csv_rows(tmp_path / "out.csv")
    assert [int(row["line"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["status"] == "ok" for row in rows] == [True, False, False, True, False, True]
    assert "empty" in rows[1]["status"]
    assert rows[4]["status"] == "not UTF-8"
    assert rows[1]["label"] == rows[1]["prob"] == ""
    (tmp_path / "in.jsonl").write_text('{"text": "hello"}\n\n{"text": null}\nbroken\n{"text": "bye", "label": "x"}\n')
    write_rows(predictor, read_texts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", 4)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["status"][:8] for line in lines] == ["ok", "the line", "the text", "not JSON", "ok"]
    assert [line["pred"] is None for line in lines] == [False, True, True, True, False]
    (tmp_path / "in.csv").write_text('text,n\n"two\nlines",1\nhello,2\n')
    write_rows(predictor, read_texts(tmp_path / "in.csv"), tmp_path / "out.csv", 4)
    assert [row["text"] for row in csv_rows(tmp_path / "out.csv")] == ["two\nlines", "hello"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_interrupted_rows_go_on_where_they_stopped(predictor, tmp_path, suffix):
    path, whole, cut = tmp_path / "in.jsonl", tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    odd = ["hello", 'two\r\nlines, "quoted"', "", None, 7, "환불해 주세요", "lone \ud800", "bye"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in odd) + "broken\n")
    counts = write_rows(predictor, read_texts(path), whole, 4)
    assert counts == (9, 4)
    content, partial = whole.read_bytes(), cut.with_name(cut.name + ".partial")
    for size in range(0, len(content), 61):  # a kill may come after any byte
        partial.write_bytes(content[:size])
        assert write_rows(predictor, read_texts(path), cut, 4, resume=True) == counts
        assert kept(cut) == kept(whole)
        assert not partial.exists()
    for wrong in (content.replace(predictor.model_id.encode(), b"another_one!"), content.replace(b"bye", b"now")):
        partial.write_bytes(wrong)
        with pytest.raises(UserError, match="without --resume"):
            write_rows(predictor, read_texts(path), cut, 4, resume=True)
        assert partial.read_bytes() == wrong


def kept(path: Path) -> list[tuple]:
    """What is equal to the letter in two files of the same answers; probabilities may differ in their last digits."""
    rows = map(json.loads, path.read_text().splitlines()) if path.suffix == ".jsonl" else csv_rows(path)
    return [tuple(row[name] for name in ("line", "text", "label", "status", "model_id")) for row in rows]


def test_nothing_to_read_writes_nothing(predictor, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "out.csv").write_text("kept")
    with pytest.raises(UserError, match="holds no line"):
        write_rows(predictor, read_texts(tmp_path / "empty.txt"), tmp_path / "out.csv", 4)
    with pytest.raises(UserError, match="no such file"):
        write_rows(predictor, read_texts(tmp_path / "gone.txt"), tmp_path / "out.csv", 4)
    assert (tmp_path / "out.csv").read_text() == "kept"


def test_memory_does_not_grow_with_the_number_of_texts(predictor):
    """Two blocks are ahead of the reader, never more, however long the file."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield taken, "where is my order?", ""

    results = predict_texts(predictor, endless(), bs=4)
    for _ in range(400):
        next(results)
    assert taken <= 400 + 3 * 4 * inference.SORTED
    tracemalloc.start()
    for _ in range(2000):
        next(results)
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    results.close()


def test_what_nothing_is_known_of_is_rejected_and_never_in_scope(predictor):
    strange, plain = predictor.predict(["ŷẑŷẑ ŷŷẑẑ", "where is my order?"])
    assert strange["in_scope"] is False
    assert plain["in_scope"] is True
    reject = predictor.assets["reject"]
    predictor.assets["reject"] = {**reject, "threshold": -1e9}
    assert [answer["in_scope"] for answer in predictor.predict(["ŷẑŷẑ", "order"])] == [False, True]
    predictor.assets["reject"] = reject


def test_predictor_in_python(predictor):
    answers = predictor.predict(["Hello!", " hello!\n", "ㅎㅇ"])
    assert answers[0] == answers[1]
    assert answers[0]["label"] == answers[0]["top"][0]["label"] == predictor.classes[answers[0]["pred"]]
    assert sum(entry["prob"] for entry in answers[0]["top"]) <= 1
    assert predictor.predict([]) == []
    with pytest.raises(TextError, match="empty"):
        predictor.predict([" "])


def test_the_checkpoint_knows_what_to_watch(predictor):
    known = {"label", "conf", "length", "unknown", "in_scope"}
    assert predictor.reference["features"].keys() == known
    assert predictor.features(["cancel it"], predictor.predict(["cancel it"])).keys() == known
    assert predictor.reference["expected"]["features"] == ["length", "unknown"]


def test_golden_texts_catch_changed_weights(intent_run, predictor, tmp_path):
    predictor.check_golden()
    ckpt = load_ckpt(intent_run / "best.pt")
    bias = ckpt["model"]["nets.ngram_linear.bias"]
    ckpt["model"]["nets.ngram_linear.bias"] = bias + torch.arange(len(bias))
    save_ckpt(tmp_path / "edited.pt", ckpt)
    with pytest.raises(CheckpointError, match="golden replay"):
        Predictor.load(tmp_path / "edited.pt").check_golden()
    ckpt["config"]["hidden"] = 7
    save_ckpt(tmp_path / "other.pt", ckpt)
    with pytest.raises(CheckpointError, match="do not fit the config"):
        Predictor.load(tmp_path / "other.pt")


def test_flags_are_checked_against_the_checkpoint(intent_run):
    for flags in (["--num_classes", "9"], ["--max_len", "9"]):
        with pytest.raises(UserError, match=f"{flags[0]} 9: .*best.pt has"):
            inference.main(["--ckpt", str(intent_run / "best.pt"), *flags])


def test_eval_writes_every_score(intent_texts, intent_run, tmp_path):
    rows = (intent_texts / "test.jsonl").read_text() + '{"text": "strange", "label": "new class"}\nbroken\n'
    (tmp_path / "test.jsonl").write_text(rows + '{"text": "' + "x " * 50 + '", "label": "refund"}\n')
    done = python(
        "project_nlp_intent.eval", "--ckpt", intent_run / "best.pt", "--val_jsonl", tmp_path / "test.jsonl",
        "--robustness", "--run_dir", tmp_path / "scores",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())["eval"]["test"]
    assert scores["texts"] == 112
    assert scores["accuracy"] > 0.7
    assert scores["new_classes"] == {"new class": 1}
    assert (scores["quarantined"]["lines"], scores["quarantined"]["first"][0]["line"]) == (1, 142)
    outside = scores["out_of_scope"]
    assert outside["texts"] == 30
    assert outside["auroc"] > 0.8
    assert outside["auroc_by_score"][outside["score"]] == outside["auroc"]
    assert {"recall_at_95", "recall", "in_scope_accepted", "threshold"} <= outside.keys()
    before, after = scores["before_temperature"], scores["after_temperature"]
    assert before.keys() == after.keys() == {"ece", "ece_equal_mass", "brier", "nll", "reliability"}
    assert scores["robustness"].keys() == {"as they are", "one typo", "no spacing", "other case"}
    assert scores["robustness"]["as they are"] == pytest.approx(scores["accuracy"])
    assert scores["slices"].keys() == {"length", "script", "unknown_words"}
    assert sum(part["texts"] for part in scores["slices"]["script"].values()) == 112
    wrong = sum(pair["count"] for pair in scores["confused"])
    assert 0 < wrong <= 112 * (1 - scores["accuracy"]) + 1
    table = list(csv.reader((tmp_path / "scores" / "confusion_matrix.csv").read_text().splitlines()))
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == scores["confusion_matrix"]
    mistakes = (tmp_path / "scores" / "mistakes.jsonl").read_text().splitlines()
    assert json.loads(mistakes[0])["prob"] >= json.loads(mistakes[-1])["prob"]
    for name in ("reliability.png", "confusion_matrix.png", "coverage_risk.png") if report.can_draw() else ():
        with Image.open(tmp_path / "scores" / name) as picture:
            assert picture.size[0] > 100
