"""The gate: a good run passes, every reason against a bad one is listed, and tampering is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from common import gate as gate_module
from common import gate_integrity, generate_model_card
from common.amp_ckpt import load_ckpt
from common.cli import UserError
from common.eval_rows import read_rows
from common.gate import gate
from common.gate_policy import read_policy
from common.generate_model_card import cards
from common.history import RegistryError
from common.log import file_sha256
from common.measure import package_of, without_places
from common.paired import compare_rows
from common.releases import Releases
from common.run_record import read_run
from project_nlp_intent.typos import DAMAGES
from tests.conftest import ROOT, python, second_run

POLICY = """
test_set = "test"                               # of 18 photos
[quality]
accuracy = ">= 0.5"
macro_f1 = [">= 0.4", "<= 1"]
[calibration]
"after_temperature.ece" = "<= 0.6"
[robustness]
"robustness.mean_corruption_accuracy" = ">= 0.3"
[leaks]
also_in_train = "<= 0"
[data]
"duplicate_groups.across_splits" = "<= 0"
skipped = "<= 0"
[baseline]
min_slice = 5
[budget]
size_mb = 5
requests = 20
[provenance]
clean = false                                   # the tests run from a working copy
"""


@pytest.fixture(scope="session")
def passed(scored_run, tmp_path_factory) -> Path:
    """A folder with a run, a policy and a registry in which the run passed its gate and is in production."""
    folder = tmp_path_factory.mktemp("gate")
    shutil.copytree(scored_run, folder / "run")
    (folder / "gate.toml").write_text(POLICY)
    store = Releases(folder / "registry")
    verdict = gate(folder / "run", folder / "gate.toml", store, "production")
    assert verdict["passed"], [check for check in verdict["checks"] if not check["passed"]]
    store.register(folder / "run")
    store.promote("vision@1", policy=file_sha256(folder / "gate.toml"))
    return folder


@pytest.fixture
def place(passed, tmp_path) -> Path:
    """A copy of it to spoil."""
    return shutil.copytree(passed, tmp_path / "place")


def judged(place: Path, run: Path | None = None) -> dict[str, str]:
    """{check: reason} of those that a gate's verdict has against a run."""
    verdict = gate(run or place / "run", place / "gate.toml", Releases(place / "registry"), "production")
    return {check["name"]: check["reason"] for check in verdict["checks"] if not check["passed"]}


def test_the_verdict_of_a_good_run(passed):
    verdict = json.loads((passed / "run" / "gate.json").read_text())
    names = [check["name"] for check in verdict["checks"]]
    assert names == [
        "files", "checkpoint", "record", "data record", "evaluation record", "evaluation repeated", "test set",
        "quality: accuracy",
        "quality: macro_f1", "calibration: after_temperature.ece", "robustness: robustness.mean_corruption_accuracy",
        "leaks: also_in_train", "baseline", "size", "golden replay", "latency", "data", "data as trained on",
        "provenance", "card",
    ]  # fmt: skip
    figures = {check["name"]: check for check in verdict["checks"]}
    assert 0 < figures["latency"]["p50_ms"] <= figures["latency"]["p99_ms"]
    assert figures["latency"]["requests"] == 20
    assert figures["size"]["megabytes"] == pytest.approx((passed / "run" / "best.pt").stat().st_size / 1e6)
    assert figures["quality: accuracy"]["wanted"] == ">= 0.5"
    assert verdict["sha256"] == file_sha256(passed / "run" / "best.pt")
    assert Releases(passed / "registry").resolve("vision@production")["sha256"] == verdict["sha256"]


@pytest.mark.slow
def test_every_reason_against_a_bad_candidate_is_listed(place, colour_photos):
    weights = load_ckpt(place / "run" / "best.pt")["model"]
    blind = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    run = second_run(place / "run", place, model=blind)
    flags = ["--val_root", colour_photos / "test", "--cache_dir", place / "cache"]
    done = python("project_vision_cls.eval", "--ckpt", run / "best.pt", *flags)
    assert done.returncode == 0, done.stderr
    strict = POLICY.replace("size_mb = 5", "size_mb = 0.001\np99_ms = 0.001").replace("clean = false", "clean = true")
    (place / "gate.toml").write_text(strict)
    against = judged(place, run)
    assert re.fullmatch(r"accuracy is 0\.333\d*, wanted >= 0\.5", against["quality: accuracy"])
    assert "macro_f1 is 0.1666" in against["quality: macro_f1"]
    assert "is None, wanted a number >= 0.3" in against["robustness: robustness.mean_corruption_accuracy"]
    assert re.search(r"worse than the incumbent: 0\.3333 against \S+ on 18 examples", against["baseline: all"])
    assert "baseline: side=under 64 px" in against
    assert "golden replay: probabilities moved by" in against["golden replay"]
    assert "not measured" in against["latency"]
    assert "size in MB is" in against["size"]
    assert "was edited, or is of other files" in against["card"]
    store = Releases(place / "registry")
    release = store.register(run)
    with pytest.raises(RegistryError, match=r"refused: .*quality: accuracy: accuracy is .*golden replay.*card: "):
        store.promote(f"vision@{release['version']}")
    assert store.promote(f"vision@{release['version']}", override="to show it")["refusals"]


def test_latency_is_measured_on_the_real_server(passed):
    slow = gate_module.served(
        "project_vision_cls", passed / "run" / "best.pt", {"size_mb": 9.0, "p99_ms": 1e-3, "requests": 5}
    )
    assert [check["name"] for check in slow if not check["passed"]] == ["latency"]
    assert re.fullmatch(r"p99 in ms is \S+, wanted <= 0\.001", slow[-1]["reason"])


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


@pytest.mark.parametrize("what", BEFORE)
def test_tampering_before_the_gate_is_refused(place, what, monkeypatch):
    tamper, name, words = BEFORE[what]
    tamper(place / "run")
    monkeypatch.setattr(gate_module, "measured", lambda *args: [])  # what follows is found without measuring
    against = judged(place)
    assert re.search(words, against[name]), against


@pytest.fixture
def no_server(monkeypatch):
    """The server is not started: another test does."""
    found = {"ready": "", "p50_ms": 1.0, "p99_ms": 2.0, "requests": 20}
    monkeypatch.setattr(gate_module, "ask_server", lambda *args: found)


@pytest.mark.slow
def test_a_score_that_only_a_new_evaluation_shows_to_be_false(place, no_server):
    held = json.loads((place / "run/metrics.json").read_text())["eval"]["test"]["after_temperature"]
    scores(place / "run", after_temperature={**held, "ece": 1e-9})
    against = judged(place)
    assert "after_temperature.ece was recorded as 1e-09, is " in against["evaluation repeated"]


def again(place: Path) -> None:
    """What a hurried person would do after changing files: register and promote."""
    release = Releases(place / "registry").register(place / "run")
    Releases(place / "registry").promote(f"vision@{release['version']}", policy=file_sha256(place / "gate.toml"))


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


@pytest.mark.parametrize("what", AFTER)
def test_tampering_after_the_gate_is_refused(place, what):
    tamper, words = AFTER[what]
    tamper(place)
    with pytest.raises(RegistryError, match=words):
        again(place)


def test_an_edited_verdict_is_worth_nothing(place):
    run = second_run(place / "run", place)
    edit_json(place / "run/gate.json", lambda held: held.update(sha256=file_sha256(run / "best.pt")))
    shutil.copy(place / "run/gate.json", run / "gate.json")
    with pytest.raises(RegistryError, match="no gate was run for the SHA-256"):
        Releases(place / "registry").promote(f"vision@{Releases(place / 'registry').register(run)['version']}")


def test_another_test_set_than_the_one_the_policy_names(place):
    version = json.loads((place / "run/metrics.json").read_text())["eval"]["test"]["data_version"]
    policy = read_policy(place / "gate.toml") | {"test_version": version[:16]}
    assert gate_module.other_test_set(policy, {"data_version": version}) == ""
    found = gate_module.other_test_set(policy, {"data_version": "0" * 64})
    assert found == f"the test set is of data version {'0' * 64}, wanted {version[:16]}"


def test_the_data_changed_since(place, colour_photos):
    extra = colour_photos / "train/red/later.png"
    shutil.copy(colour_photos / "train/red/0.png", extra)
    try:
        found = gate_module.data_now(place / "run", {"provenance": {"data_present": True}})
    finally:
        extra.unlink()
    assert re.search(r"the data changed since training: 84 → 85 files.*came \(1\): train/red/later\.png", found[0])


@pytest.mark.parametrize(
    ("git", "module", "words"),
    [
        (
            {"commit": None, "dirty": None},
            "x.train",
            ["the commit of the code is not known: train from a git checkout"],
        ),
        ({"commit": "a", "dirty": True}, "x.train", ["the code had uncommitted changes: commit them and train again"]),
        ({"commit": "a", "dirty": False}, None, ["the command of the training is not known"]),
        ({"commit": "a", "dirty": False}, "x.train", []),
    ],
)
def test_provenance(place, git, module, words):
    edit_json(place / "run/run.json", lambda held: held.update(git=git, module=module))
    assert gate_module.provenance(place / "run", {"provenance": {"clean": True}}) == words


@pytest.mark.slow
def test_the_commands_gate_and_promote(place, registry, no_server):
    store = ["--store", place / "registry"]
    flags = ["--candidate", place / "run", "--policy", place / "gate.toml", *store]
    code, out = registry("gate", *flags)
    assert code == 0, out
    assert "ok baseline: all\n" in out  # against itself, which is in production
    assert out.endswith(f"passed; details: {place}/run/gate.json\n")
    assert registry("promote", "vision@1", "--policy", place / "gate.toml", *store)[0] == 0
    code, out = registry("promote", "vision@1", *store)  # the project's own policy was not the gate's
    assert (code, "under another policy" in out) == (1, True)
    (place / "run/metrics.json").unlink()
    code, out = registry("gate", *flags)
    assert code == 1
    assert "NO files: " in out
    assert re.search(r"not passed, \d+ of \d+ checks speak against it", out)
    with pytest.raises(UserError, match="no such file; pass --policy"):
        registry("gate", "--candidate", place / "run", "--policy", place / "none.toml", *store)


def test_flags_that_say_where_are_left_out_of_a_repeated_evaluation():
    argv = ["--ckpt", "a.pt", "--val_root", "test", "--run_dir=x", "--backtest", "3", "--bs", "4"]
    assert without_places(argv) == ["--val_root", "test", "--bs", "4"]
    with pytest.raises(UserError, match="project sound: found no package"):
        package_of("sound")


@pytest.mark.parametrize("project", ["nlp", "ts"])
def test_runs_of_texts_and_of_series_are_whole_and_comparable(project, tmp_path, request):
    source = request.getfixturevalue({"nlp": "intent_run", "ts": "wave_run"}[project])
    run, package = shutil.copytree(source, tmp_path / "run"), package_of(project)
    flags = {"nlp": ["--val_jsonl", request.getfixturevalue("intent_texts") / "test.jsonl"], "ts": []}[project]
    done = python(f"{package}.eval", "--ckpt", run / "best.pt", *flags)
    assert done.returncode == 0, done.stderr
    assert "the data changed" not in done.stdout
    found = {name: find(run, "test") for name, find in gate_integrity.INTEGRITY.items()}
    assert found == {key: [] for key in found}
    rows, scores = read_rows(run / "eval_rows_test.csv"), read_run(run)["eval"]["test"]
    mean = scores["accuracy"] if project == "nlp" else scores["original"]["model"]["mase"]["all"]
    assert scores["rows"]["mean"] == pytest.approx(mean, rel=1e-6)
    policy = read_policy(ROOT / package / "gate.toml")
    lacking = [check["name"] for check in gate_module.within_bounds(policy, scores) if check["found"] is None]
    assert lacking == (["robustness: robustness.one typo"] if project == "nlp" else [])  # it was not asked for
    robust = {"robustness": dict.fromkeys(DAMAGES, 0.6)} if project == "nlp" else {}
    assert not any(check["found"] is None for check in gate_module.within_bounds(policy, scores | robust))
    assert not any(one["worse"] for one in compare_rows(rows, rows, min_slice=10))
    generate_model_card.main(["--run_dir", str(run)])
    missing, asked = cards(run)[1], gate_module.card(run, policy)
    assert ("metrics" in missing, "robustness" in missing) == (False, True)
    assert any("robustness" in reason for reason in asked) == (project == "nlp")  # of series it trains anew
    assert gate_module.data_now(run, {"provenance": {"data_present": True}}) == []
