"""The gate: a good run passes, every reason against a bad one is listed, and tampering is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from common import gate as gate_module
from common.amp_ckpt import load_ckpt
from common.cli import UserError
from common.gate import gate
from common.gate_policy import read_policy
from common.history import RegistryError
from common.log import file_sha256
from common.releases import Releases
from tests.conftest import python, second_run
from tests.tampering import AFTER, BEFORE, edit_json, scores

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
