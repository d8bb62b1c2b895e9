"""The gate of the other projects: runs of texts and of series are whole, comparable and evaluated again."""

from __future__ import annotations

import shutil

import pytest

from common import gate as gate_module
from common import gate_integrity, generate_model_card
from common.cli import UserError
from common.eval_rows import read_rows
from common.gate_policy import read_policy
from common.generate_model_card import cards
from common.measure import package_of, without_places
from common.paired import compare_rows
from common.run_record import read_run
from project_nlp_intent.typos import DAMAGES
from tests.conftest import ROOT, python


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
