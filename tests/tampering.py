"""What may be done to a run before its gate, or to all of it afterwards, and the words that must refuse it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from common.amp_ckpt import load_ckpt
from common.log import file_sha256
from common.releases import Releases
from tests.conftest import second_run


def edit_json(path: Path, change) -> None:
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


def edit_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def replace_checkpoint(run: Path, **changes: object) -> None:
    """Another checkpoint with a twin and a record that fit it."""
    other = second_run(run, run.parent, **changes)
    for name in ("best.pt", "best.json", "run.json"):
        shutil.copy(other / name, run / name)


def edit_rows(run: Path, change) -> None:
    path = run / "eval_rows_test.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def scores(run: Path, **changes: object) -> None:
    edit_json(run / "metrics.json", lambda held: held["eval"]["test"].update(changes))


def part(name: str, key: str, **values: object):
    """A change to one part of a JSON file of the run."""
    return lambda run: edit_json(run / name, lambda held: held[key].update(values))


def doubled(run: Path) -> None:
    replace_checkpoint(run, model={key: value * 2 for key, value in load_ckpt(run / "best.pt")["model"].items()})


def other_classes(run: Path) -> None:
    assets = load_ckpt(run / "best.pt")["assets"]
    replace_checkpoint(run, assets={**assets, "classes": assets["classes"][::-1]})


def torn(name: str, keep: int):
    """A file of the run cut off."""
    return lambda run: (run / name).write_text((run / name).read_text()[:keep])


RECORD, MANIFEST, ROWS = "run.json", "data_manifest.json", "evaluation record"
# what is done to the run before its gate: (how, the check that finds it, its words)
BEFORE = {
    "a byte of the weights": (lambda run: flip(run / "best.pt", 2000), "checkpoint", "SHA-256|not a whole"),
    "other weights": (doubled, ROWS, "the scores are of model"),
    "weights of another run": (
        lambda run: shutil.copy(second_run(run, run.parent) / "best.pt", run), "checkpoint", r"run\.json names",
    ),
    "config in the twin": (part("best.json", "config", lr=9), "checkpoint", "config"),
    "config in the record": (part(RECORD, "config", lr=9), "record", "differ in config"),
    "seed in the record": (lambda run: edit_json(run / RECORD, lambda held: held.update(seed=1)), "record", "seed"),
    "commit in the record": (part(RECORD, "git", commit="f" * 40), "record", "differ in git"),
    "packages in the record": (part(RECORD, "packages", torch="9"), "record", "differ in packages"),
    "best score in the record": (part(RECORD, "best", val_acc=1.5), "record", "differ in best"),
    "classes in the twin": (part("best.json", "assets", classes=["a", "b", "c"]), "checkpoint", "assets"),
    "classes in the checkpoint": (other_classes, "data record", "the classes"),
    "accuracy": (lambda run: scores(run, accuracy=0.999999), ROWS, "accuracy"),
    "the model of the scores": (lambda run: scores(run, model_id="0" * 12), ROWS, "the scores are of"),
    "a row made right": (
        lambda run: edit_rows(run, lambda rows: rows[0].update(pred="black", correct="1")), ROWS, "right that are not",
    ),
    "rows taken out": (lambda run: edit_rows(run, lambda rows: rows.pop()), ROWS, "not the one"),
    "rows torn": (torn("eval_rows_test.csv", -9), ROWS, "whole rows|not the one"),
    "data version": (
        lambda run: edit_json(run / MANIFEST, lambda held: held.update(data_version="0" * 64)), "data record", "edited",
    ),
    "counts of a class": (part(MANIFEST, "classes", red={"train": 99, "val": 8}), "data record", "counts"),
    "duplicates": (part(MANIFEST, "duplicate_groups", near=5), "record", r"manifest\.json is not the one"),
    "a file of the data": (
        lambda run: edit_text(run / "data_files.csv", "red/7.png", "red/77.png"), "data record", "edited or torn",
    ),
    "the curve": (lambda run: edit_text(run / "train.jsonl", '"loss": ', '"loss": 0'), "record", "train.jsonl is not"),
    "the record torn": (torn(RECORD, 99), "record", "no whole JSON"),
    "the twin gone": (lambda run: (run / "best.json").unlink(), "files", "lacks best.json"),
    "a card": (lambda run: edit_text(run / "MODEL_CARD.md", "accuracy | ", "accuracy | 9"), "card", "was edited"),
    "a fact of the card": (
        lambda run: edit_json(run / "card.json", lambda held: held["facts"].pop("contact")), "card", "missing: contact",
    ),
}  # fmt: skip


def kept(place: Path, name: str) -> Path:
    store = Releases(place / "registry")
    return store.file(store.resolve("vision@1"), name)


def other_production(place: Path) -> None:
    store = Releases(place / "registry")
    other = store.register(second_run(place / "run", place))
    store.promote(f"vision@{other['version']}", override="urgent")


def kept_verdict(place: Path) -> None:
    flip(Releases(place / "registry").held(file_sha256(place / "run/gate.json"), ".json"), 14)


def without_line(number: int):
    """The history with a line taken out."""

    def tamper(place: Path) -> None:
        path = place / "registry/history.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        del lines[number]
        path.write_text("".join(lines))

    return tamper


HISTORY = "registry/history.jsonl"
# what is done after the gate was passed: (how, the words of the refusal)
AFTER = {
    "weights of the release": (lambda place: flip(kept(place, "best.pt"), -20), "so it was changed"),
    "scores of the release": (lambda place: flip(kept(place, "metrics.json"), 100), "so it was changed"),
    "a file of the release gone": (lambda place: kept(place, "run.json").unlink(), "is gone"),
    "the kept verdict": (kept_verdict, "so it was changed"),
    "the history says passed": (
        lambda place: edit_text(place / HISTORY, '"passed": true', '"passed": 1'),
        "was edited",
    ),
    "a line of the history gone": (without_line(0), "was edited"),
    "the end of the history gone": (without_line(-1), "cut off"),
    "scores in the run": (
        lambda place: scores(place / "run", accuracy=1.0),
        r"metrics\.json is not the file that the gate",
    ),
    "card in the run": (
        lambda place: (place / "run/MODEL_CARD.md").write_text("fine"),
        r"MODEL_CARD\.md is not the file",
    ),
    "weights in the run": (lambda place: replace_checkpoint(place / "run"), "no gate was run for the SHA-256"),
    "a weaker policy": (lambda place: edit_text(place / "gate.toml", ">= 0.5", ">= 0.0"), "under another policy"),
    "another release in production": (other_production, "the gate compared with "),
}
