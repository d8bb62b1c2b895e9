"""The record of a run, the table of runs, training again from the record, and MLflow reading it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from common import run_table
from common.amp_ckpt import load_ckpt
from common.cli import UserError
from common.log import file_sha256, read_jsonl
from common.mlflow_export import export
from common.reproduce import command_of, compare_weights, environment_differences
from common.run_record import differences, find_runs, flat, lower_is_better, read_run

BETWEEN = ("val_acc", "val_loss", "config.lr")


def made_up(tmp_path, colour_run, name, **changes):
    """A copy of the run with other values in its record."""
    run = shutil.copytree(colour_run, tmp_path / name)
    record = json.loads((run / "run.json").read_text())
    for key, value in changes.items():
        record[key] = {**record[key], **value} if isinstance(value, dict) else value
    (run / "run.json").write_text(json.dumps(record))
    return run


def test_the_record_says_what_the_other_files_say(colour_run, colour_photos):
    run = read_run(colour_run)
    ckpt = load_ckpt(colour_run / "best.pt")
    assert run["checkpoint"] == {"file": "best.pt", "sha256": file_sha256(colour_run / "best.pt")}
    assert run["config"] == ckpt["config"]
    assert run["module"] == "project_vision_cls.train"
    assert run["argv"][:2] == ["--train_root", str(colour_photos / "train")]
    assert (run["seed"], run["data_version"]) == (42, ckpt["provenance"]["data_version"])
    assert run["best"] == {"epoch": ckpt["epoch"], **ckpt["metrics"]}
    assert run["packages"].keys() == {"python", "torch", "numpy", "pillow"}
    assert run["host"]["threads"] == 1
    curve, torn = read_jsonl(colour_run / run["curve"])
    assert torn == 0
    assert run["seconds"] == pytest.approx(sum(line["seconds"] for line in curve), abs=1e-3)


def test_the_table_filters_sorts_and_finds_the_best(tmp_path, colour_run):
    for name, lr, accuracy in (("a", 0.1, 0.5), ("b", 0.01, 0.9), ("c", 0.001, 0.7)):
        best = {"val_acc": accuracy, "val_loss": 1 - accuracy}
        made_up(tmp_path, colour_run, f"{name}/earlier", config={"lr": lr}, best=best)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text('{"format": 1, "proj')
    runs, problems = find_runs([tmp_path])
    assert len(runs) == 3
    assert re.search(r"torn/run\.json: no whole JSON", problems[0])
    order = [flat(run)["val_acc"] for run in run_table.in_order(runs, "val_acc", True)]
    assert order == [0.9, 0.7, 0.5]
    assert [flat(run)["config.lr"] for run in run_table.in_order(runs, "config.lr")] == [0.001, 0.01, 0.1]
    assert len(run_table.kept(runs, ["config.lr<=0.01", "val_acc!=0.9"])) == 1
    assert run_table.kept(runs, ["project=nlp"]) == []
    assert len(run_table.kept(runs, ["project=vision"])) == 3
    assert run_table.best(runs, "val_acc")["best"]["val_acc"] == 0.9
    assert run_table.best(runs, "val_loss")["best"]["val_acc"] == 0.9
    with pytest.raises(UserError, match=r"none of 3 runs has it; they have .*val_acc"):
        run_table.best(runs, "val_f1")
    with pytest.raises(UserError, match="wanted NAME=VALUE"):
        run_table.kept(runs, ["val_acc"])
    assert differences(*runs[:2]) == {key: [flat(runs[0])[key], flat(runs[1])[key]] for key in BETWEEN}


def test_the_commands(tmp_path, colour_run, registry):
    a = made_up(tmp_path, colour_run, "a")
    b = made_up(tmp_path, colour_run, "b", seed=7, config={"lr": 0.5}, best={"val_acc": 0.1})
    code, out = registry("runs", "--root", tmp_path, "--sort", "val_acc", "--highest_first", "--where", "seed>1")
    header, first, second = out.splitlines()
    assert (code, header.split()[:6]) == (0, run_table.ALWAYS)
    assert (first.split()[0], second.split()[0]) == (str(a), str(b))
    code, out = registry("runs", "--root", tmp_path, "--json")
    assert {row["seed"] for row in json.loads(out)} == {42, 7}
    code, out = registry("runs", "best", "--metric", "val_acc", "--root", tmp_path)
    assert out.startswith(f"{a}\nval_acc ")
    code, out = registry("runs", "diff", a, b)
    assert "seed: 42 → 7\n" in out
    assert "config.lr: 0.01 → 0.5\n" in out
    assert "data: the same data" in out
    code, out = registry("runs", "diff", a, b, "--json")
    assert json.loads(out)["values"]["config.lr"] == [0.01, 0.5]


def test_losses_and_errors_are_better_when_low():
    low = ["val_loss", "test.after_temperature.ece", "test.brier", "mse", "test.mean_mae", "seconds"]
    low += [
        "test.original.model.mase.all",
        "test.intervals.rolling.original.winkler.all",
        "test.intervals.split.width.all",
    ]
    low += ["test.after_temperature.ece_equal_mass", "test.coverage_risk.aurc", "test.also_in_train", "test.skipped"]
    assert all(lower_is_better(name) for name in low)
    assert not any(lower_is_better(name) for name in ("val_acc", "test.accuracy", "macro_f1", "auroc", "coverage"))
    high = ["test.intervals.rolling.coverage.all", "test.skill.repeat_last", "test.classes.error.recall", "test.top5"]
    assert not any(lower_is_better(name) for name in high)


@pytest.mark.slow
def test_a_run_is_reproduced_bit_by_bit(colour_run, tmp_path, registry):
    out = tmp_path / "again"
    code, text = registry("runs", "reproduce", colour_run, "--out", out)
    assert (code, f"the weights of {colour_run} and {out} are bit-equal" in text) == (0, True), text
    assert compare_weights(colour_run / "best.pt", out / "best.pt") == (True, [])
    assert (out / "run.json").exists()
    with pytest.raises(UserError, match="exists; pass another --out"):
        registry("runs", "reproduce", colour_run, "--out", out)
    other = made_up(tmp_path, colour_run, "other")
    record = json.loads((other / "run.json").read_text())
    record["argv"] += ["--seed", "7"]  # a seed that is not that of the weights
    record["packages"]["numpy"] = "1.0"
    (other / "run.json").write_text(json.dumps(record))
    code, text = registry("runs", "reproduce", other, "--out", tmp_path / "third")
    assert code == 1
    assert re.search(r"NOT equal\n  \d+ of \d+ weight tensors differ, by .* at most; first \S+", text)
    assert "numpy was 1.0, is " in text


@pytest.mark.slow
@pytest.mark.parametrize("run", ["intent_run", "wave_run"])
def test_texts_and_series_are_reproduced_bit_by_bit(run, request, tmp_path, registry):
    run, out = request.getfixturevalue(run), tmp_path / "again"
    code, text = registry("runs", "reproduce", run, "--out", out)
    assert (code, f"the weights of {run} and {out} are bit-equal" in text) == (0, True), text
    assert compare_weights(run / "best.pt", out / "best.pt") == (True, [])
    assert load_ckpt(run / "best.pt")["epoch"] == load_ckpt(out / "best.pt")["epoch"]


def test_other_data_is_named_before_any_training(tmp_path, colour_run, colour_photos, registry):
    run = made_up(tmp_path, colour_run, "run")
    manifest = json.loads((run / "data_manifest.json").read_text())
    manifest["roots"]["train"] = str(shutil.copytree(colour_photos / "train", tmp_path / "photos"))
    (run / "data_manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "photos/red/0.png").unlink()
    with pytest.raises(UserError, match="the data is another: 84 → 83 files"):
        registry("runs", "reproduce", run, "--out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_command_of_a_record_and_what_is_not_as_it_was(colour_run):
    run = read_run(colour_run)
    run["argv"] = ["--epochs", "3", "--run_dir", "old", "--resume", "--run_dir=older", "--lr=0.1"]
    assert command_of(run, "new")[2:] == [run["module"], "--epochs", "3", "--lr=0.1", "--run_dir", "new"]
    assert environment_differences(read_run(colour_run)) == []
    run["git"]["commit"], run["host"]["cpu"] = "abc", "6502"
    assert [line.split(" was ")[0] for line in environment_differences(run)] == ["git commit", "cpu"]


def test_mlflow_reads_what_was_exported(colour_run, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder in place of a server
    from mlflow.tracking import MlflowClient

    uri = f"file:{tmp_path}/mlruns"
    run_id = export(colour_run, uri, experiment="colours")
    client = MlflowClient(uri)
    found, run = client.get_run(run_id), read_run(colour_run)
    assert client.get_experiment(found.info.experiment_id).name == "colours"
    assert found.data.params == {name: str(value) for name, value in run["config"].items()}
    curve, _ = read_jsonl(colour_run / "train.jsonl")
    history = sorted(client.get_metric_history(run_id, "val_acc"), key=lambda metric: metric.step)
    assert [(metric.step, metric.value) for metric in history] == [(line["epoch"], line["val_acc"]) for line in curve]
    assert found.data.metrics["best.val_acc"] == run["best"]["val_acc"]
    assert found.data.tags["data_version"] == run["data_version"]
    assert found.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run_id)} >= {"run.json", "metrics.json", "data_manifest.json"}
    export(colour_run, uri, experiment="colours")  # a second time: another run in the same experiment
    assert len(client.search_runs([found.info.experiment_id])) == 2


def test_a_server_that_is_not_there_and_the_missing_extra(colour_run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow.entities", None)
    with pytest.raises(UserError, match=r"mlflow-skinny is not installed; pip install 'ml-e2e\[mlflow\]'"):
        export(colour_run, "http://127.0.0.1:1")
