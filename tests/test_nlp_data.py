"""Reading labelled texts: every odd line is read or put aside with its reason, splits never share a text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from common.cli import UserError
from project_nlp_intent import data
from project_nlp_intent.data import NEW, OUT, Buckets, IntentDataset, load_splits, make_loader, split
from project_nlp_intent.encode import Encoder
from project_nlp_intent.manifest import make_manifest, write_manifest
from project_nlp_intent.read import read_labelled
from tests.conftest import python


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(n: int, classes: str = "ab", word: str = "text") -> list[dict]:
    return [{"text": f"{word} {i}", "label": classes[i % len(classes)]} for i in range(n)]


def test_jsonl_bad_lines_are_put_aside_with_line_and_reason(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "first", "label": " a "}\r',
        b'{"text": null, "label": "a"}',
        b"",
        b'{"text": 7, "label": "a"}',
        b'{"text": " ", "label": "a"}',
        b"not json",
        b'["text"]',
        b'"text"',
        b'{"label": "a"}',
        b'{"text": "x", "label": null}',
        b'{"text": "x", "label": true}',
        b'{"text": "x", "label": 1.5}',
        b'{"text": "x", "label": "  "}',
        b'{"text": "x"}',
        b'{"text": "caf\xe9", "label": "a"}',
        b'{"text": "number\\u2028label", "label": 3}',
        b'{"text": "lone \\ud800", "label": "a"}',
    ]
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows, bad = read_labelled(path)
    assert [(row.line, row.label) for row in rows] == [(1, "a"), (16, "3"), (17, "a")]
    told = {entry["line"]: entry["reason"] for entry in bad}
    assert sorted(told) == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    for line, words in {
        2: "null", 4: "a int", 5: "empty", 6: "not JSON", 7: "not a JSON object", 8: "not a JSON object", 9: "no text",
        10: "label is null", 11: "a bool", 12: "a float", 13: "label is empty", 14: "label is missing", 15: "UTF-8",
    }.items():  # fmt: skip
        assert words in told[line]


@pytest.mark.parametrize(("name", "tab"), [("t.csv", ","), ("t.tsv", "\t")])
def test_tables_with_quoted_line_breaks(tmp_path, name, tab):
    path = tmp_path / name
    text = f'\ufeffid{tab} Text {tab}label\r\n1{tab}"two\r\nlines"{tab} a \r\n\r\n'
    text += f'2{tab}short\r\n3{tab}"say ""hi"""{tab}b\r\n'
    path.write_bytes(text.encode() + f"4{tab}caf\xe9{tab}b\r\n".encode("latin-1"))
    rows, bad = read_labelled(path)
    assert [(row.line, row.text, row.label) for row in rows] == [(2, "two\r\nlines", "a"), (6, 'say "hi"', "b")]
    assert [(entry["line"], entry["reason"]) for entry in bad] == [
        (5, "2 cells, wanted 3 as in the header"),
        (7, "not UTF-8"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jsonl", None, "no such file"),
        ("a.parquet", "x", "suffix '.parquet'"),
        ("a.csv", "sentence,label\nx,y\n", "wanted a column text"),
        ("a.jsonl", '{"text": 1}\n', "no labelled text among 1 lines; line 1: the text is a int"),
        ("a.jsonl", "", "no labelled text among 0 lines"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_words(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as refused:
        IntentDataset(tmp_path / name)
    assert words in str(refused.value)
    assert "python -m project_nlp_intent.synthetic" in str(refused.value)


def test_classes_come_in_order_and_new_ones_are_counted(tmp_path):
    train = IntentDataset(write(tmp_path / "train.jsonl", [{"text": str(n), "label": n} for n in (10, 9, -1, 2)]))
    assert train.classes == ["-1", "2", "9", "10"]
    odd = [{"text": "a", "label": "9"}, {"text": "b", "label": "x"}, {"text": "c", "label": "oos"}]
    val = IntentDataset(write(tmp_path / "val.jsonl", odd), train.classes)
    assert val.labels.tolist() == [2, NEW, OUT]
    assert val.new_classes == {"x": 1}


def test_strict_stops_at_the_first_bad_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a", "label": "x"}\nbroken\n')
    assert len(IntentDataset(path)) == 1
    with pytest.raises(UserError, match="line 2: not JSON"):
        IntentDataset(path, strict=True)


def test_split_is_stratified_seeded_and_never_tears_equal_texts(tmp_path):
    rows = [*rows_of(200, "aaab"), {"text": "  TEXT 3 ", "label": "b"}, {"text": "text 3", "label": "b"}]
    rows += [{"text": f"out {i}", "label": "oos"} for i in range(20)]
    texts = IntentDataset(write(tmp_path / "t.jsonl", rows))
    train, val = split(texts, 0.2, seed=1)
    assert not set(train.texts) & set(val.texts)
    counts = torch.bincount(val.labels[val.labels >= 0])
    assert counts.tolist() == [30, 10]
    assert (val.labels == OUT).sum() == 4
    assert split(texts, 0.2, seed=1)[1].texts == val.texts
    assert split(texts, 0.2, seed=2)[1].texts != val.texts


def test_every_class_keeps_a_text_for_training(tmp_path):
    rows = [*rows_of(50, "a"), {"text": "only one", "label": "b"}, {"text": "c one", "label": "c"}]
    rows.append({"text": "c two", "label": "c"})
    train, _ = split(IntentDataset(write(tmp_path / "t.jsonl", rows)), 0.9, seed=0)
    assert set(train.labels.tolist()) == {0, 1, 2}
    with pytest.raises(UserError, match="too few texts"):
        split(IntentDataset(write(tmp_path / "two.jsonl", rows_of(2))), 0.5, seed=0)


def test_load_splits_finds_the_file_beside_and_leaves_out_of_scope_out_of_training(tmp_path):
    path = write(tmp_path / "train.jsonl", [*rows_of(40), {"text": "moon", "label": "oos"}])
    train, val = load_splits(path, None, 0.25, seed=0)
    assert (len(train), len(val), train.path == val.path) == (30, 10, True)
    write(tmp_path / "dev.jsonl", rows_of(4, word="other"))
    train, val = load_splits(path, None, 0.25, seed=0)
    assert (len(train), len(val), val.path.name) == (40, 4, "dev.jsonl")
    assert (train.labels >= 0).all()
    write(tmp_path / "dev.jsonl", rows_of(4, "xy"))
    with pytest.raises(UserError, match="wanted some of"):
        load_splits(path, None, 0.25, seed=0)
    with pytest.raises(UserError, match="wanted at least two"):
        load_splits(write(tmp_path / "one.jsonl", rows_of(9, "a")), str(path), 0.25, seed=0)


def test_manifest_counts_what_spoils_scores(tmp_path):
    rows = [*rows_of(8), {"text": "text 0", "label": "a"}, {"text": "Text 1", "label": "a"}]
    rows.append({"text": "rare", "label": "r"})
    train = IntentDataset(write(tmp_path / "train.jsonl", rows))
    (tmp_path / "val.jsonl").write_text('{"text": "text 2", "label": "a"}\n{"text": "q", "label": "z"}\nbroken\n')
    sets = {"train": train, "val": IntentDataset(tmp_path / "val.jsonl", train.classes)}
    manifest = make_manifest(sets)
    assert manifest["duplicates"] == {"copies": 3, "across_splits": 1, "several_labels": 1}
    assert manifest["duplicate_examples"]["several_labels"] == {"text 1": ["a", "b"]}
    assert list(manifest["rare_classes"]) == ["r"]
    assert manifest["new_classes"] == {"val": {"z": 1}}
    assert manifest["quarantined"] == {"val": 1}
    write_manifest(tmp_path, sets, manifest)
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 3
    assert make_manifest(sets)["data_version"] == manifest["data_version"]
    assert make_manifest({"train": train})["data_version"] != manifest["data_version"]


def test_batches_hold_every_text_once_and_like_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 60, 1003)
    torch.manual_seed(0)
    batches = list(Buckets(lengths, 10, shuffle=True, drop_last=False))
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert len(batches) == len(Buckets(lengths, 10, True, False)) == 101
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 8
    assert list(Buckets(lengths, 10, shuffle=True, drop_last=False)) != batches
    plain = list(Buckets(lengths, 10, shuffle=False, drop_last=False))
    assert [i for batch in plain for i in batch] == list(range(1003))
    assert len(list(Buckets(lengths, 10, shuffle=True, drop_last=True))) == 100
    assert len(list(Buckets(lengths[:5], 10, shuffle=True, drop_last=True))) == 1


def test_loader_gives_inputs_and_labels_that_belong_together(tmp_path):
    texts = IntentDataset(write(tmp_path / "t.jsonl", rows_of(50)))
    texts.encode(encoder := Encoder.fit(texts.texts, "word", max_len=4, max_vocab=600))
    vocab = encoder.vocab
    for inputs, labels in make_loader(texts, 7, shuffle=True):
        assert inputs["tokens"].shape[0] == inputs["offsets"].shape[0] == len(labels)
        assert (inputs["tokens"][:, 0] == vocab["text"]).all()


def test_import_clinc150(tmp_path):
    parts = {name: [[f"{name} {i}", "ab"[i % 2]] for i in range(6)] for name in ("train", "val", "test")}
    parts |= {f"oos_{name}": [[f"moon {name}", "oos"]] for name in ("train", "val", "test")}
    parts["train"] += [["", "a"], ["no label", None], "torn"]
    (tmp_path / "data.json").write_text(json.dumps(parts))
    out = tmp_path / "out"
    done = python("project_nlp_intent.data", "import", "--format", "clinc150", tmp_path / "data.json", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "6 train, 7 val, 7 test, 1 train_oos texts" in done.stdout
    assert "3 lines could not be used" in done.stdout
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 3
    val = IntentDataset(out / "val.jsonl", ["a", "b"])
    assert val.labels.tolist() == [0, 1, 0, 1, 0, 1, OUT]


def test_import_columns(tmp_path, capsys):
    (tmp_path / "train.txt").write_bytes('0\t"만화\r\n1\t이치가\r\n2\r\n1\tcaf\xe9\r\n'.encode())
    (tmp_path / "test.csv").write_text('label,text\nx,"a, b"\n')
    shared = ["import", "--out", str(tmp_path / "out"), "--format"]
    data.main([*shared, "tsv", str(tmp_path / "train.txt"), "--columns", "label,text"])
    assert "3 train texts" in capsys.readouterr().out
    rows, bad = read_labelled(tmp_path / "out" / "train.jsonl")
    assert [(row.text, row.label) for row in rows] == [('"만화', "0"), ("이치가", "1"), ("café", "1")]
    assert bad == []
    data.main([*shared, "csv", str(tmp_path / "test.csv"), "--test", str(tmp_path / "test.csv")])
    assert read_labelled(tmp_path / "out" / "test.jsonl")[0][0].text == "a, b"


def test_strict_import_stops_at_the_first_bad_line_and_writes_nothing(tmp_path):
    (tmp_path / "train.tsv").write_text("label\ttext\na\thello\n")
    (tmp_path / "test.tsv").write_text("label\ttext\na\tgood\na\nb\t\n")
    files = [str(tmp_path / "train.tsv"), "--test", str(tmp_path / "test.tsv"), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"line 3 of test: .*leave --strict out"):
        data.main(["import", "--format", "tsv", *files, "--strict"])
    assert not (tmp_path / "out").exists()
    data.main(["import", "--format", "tsv", *files])
    assert len(read_labelled(tmp_path / "out" / "test.jsonl")[0]) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--format", "clinc150", "none.json"], "cannot be read"),
        (["--format", "clinc150", "list.json"], "wanted an object with the lists"),
        (["--format", "clinc150", "torn.json"], "not JSON"),
        (["--format", "tsv", "none.tsv"], "no such file"),
        (["--format", "tsv", "torn.json"], "--columns label,text"),
        (["--format", "csv", "empty.csv"], "no usable text"),
    ],
)
def test_import_refuses_in_words(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "torn.json").write_text('{"train": [')
    (tmp_path / "empty.csv").write_text("text,label\n,\n")
    with pytest.raises(UserError) as refused:
        data.main(["import", *flags, "--out", str(tmp_path / "out")])
    assert words in str(refused.value)
