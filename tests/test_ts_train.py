"""Training and evaluation: what is learnt, what is promised, what a resumed run gives, and what goes wrong in words."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from common.amp_ckpt import load_ckpt
from common.log import read_jsonl
from project_ts_forecast import batch_predict, train
from project_ts_forecast import eval as evaluation
from project_ts_forecast.batch_predict import series_of
from project_ts_forecast.calibrate import best_gain, best_lean
from project_ts_forecast.conformal import pair_scores, radii, rolling_radii, widen
from project_ts_forecast.data import SeriesWindow
from project_ts_forecast.inference import Predictor
from project_ts_forecast.linear import fit_linear
from project_ts_forecast.model import build_model
from project_ts_forecast.read import find_layout
from project_ts_forecast.scores import autocorrelation, interval_scores, lagged_copy, point_scores, seasonal_naive
from tests.conftest import TS_FLAGS, python, wave, write_series

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = {"arch": "hybrid", "win": 48, "h": 6, "hidden": 8, "dropout": 0.1, "mixed": False, "reference": "last"}
CONFIG |= {
    "volatility": False,
    "loss": "smooth_l1",
    "mc_samples": 0,
    "season": 24,
    "levels": [0.05, 0.25, 0.5, 0.75, 0.95],
}


def metrics_of(run_dir, name: str = "test") -> dict:
    return json.loads((run_dir / "metrics.json").read_text())["eval"][name]


@pytest.fixture(scope="module")
def test_scores(wave_run) -> dict:
    done = python("project_ts_forecast.eval", "--ckpt", wave_run / "best.pt", "--win", 48, "--backtest", 2)
    assert done.returncode == 0, done.stderr
    return metrics_of(wave_run)


def test_the_forecast_beats_both_naives_and_its_intervals_hold(test_scores):
    mse = {name: part["mse"]["all"] for name, part in test_scores["scaled"].items()}
    assert mse["model"] < 0.5 * min(mse["repeat_last"], mse["seasonal_naive"])
    for found in test_scores["intervals"].values():
        assert 0.82 <= found["coverage"]["all"] <= 0.97
        assert len(found["coverage"]["steps"]) == 6
    assert not any(found["copy"] for found in test_scores["residuals"]["lagged_copy"].values())
    assert [fold["mse"] < fold["repeat_last"] for fold in test_scores["backtest"]["folds"]] == [True, True]


def test_a_score_does_not_depend_on_the_batch_size(wave_run, test_scores):
    done = python("project_ts_forecast.eval", "--ckpt", wave_run / "best.pt", "--bs", 7)
    assert done.returncode == 0, done.stderr
    again = metrics_of(wave_run)
    for part in ("scaled", "intervals"):
        for name, found in again[part].items():
            for score in ("mse", "mae", "coverage", "width"):
                if score in found:
                    assert found[score]["all"] == pytest.approx(test_scores[part][name][score]["all"], rel=1e-5)


def test_a_flag_that_contradicts_the_checkpoint_is_refused(wave_run):
    done = python("project_ts_forecast.eval", "--ckpt", wave_run / "best.pt", "--h", 12)
    assert (done.returncode, "--h 12" in done.stderr) == (2, True)


def test_a_cut_and_resumed_run_ends_with_the_same_weights(wave_csv, tmp_path, monkeypatch):
    flags = ["--csv", str(wave_csv), *map(str, TS_FLAGS), "--arch", "lstm", "--device", "cpu", "--run_dir"]
    train.main([*flags, str(tmp_path / "whole")])
    saved, calls = train.save_ckpt, []

    def cut_after_two(path, ckpt):
        saved(path, ckpt)
        calls.append(path.name)
        if calls.count("last.pt") == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_ckpt", cut_after_two)
    with pytest.raises(KeyboardInterrupt):
        train.main([*flags, str(tmp_path / "cut")])
    monkeypatch.setattr(train, "save_ckpt", saved)
    train.main([*flags, str(tmp_path / "cut"), "--resume"])
    whole, cut = (load_ckpt(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    assert all(torch.equal(whole["model"][key], cut["model"][key]) for key in whole["model"])
    assert len(read_jsonl(tmp_path / "cut" / "train.jsonl")[0]) == 3


@pytest.mark.parametrize(
    "flags",
    [
        "--loss quantile --arch lstm",
        "--mc_samples 20",
        "--reference seasonal --calendar --volatility",
        "--pad --mixed --covariate_cols other",
    ],
)
def test_every_kind_of_model_trains_scores_and_predicts(tmp_path, flags):
    rng = np.random.default_rng(0)
    path = write_series(tmp_path / "data.csv", wave(700))
    lines = path.read_text().splitlines()
    rows = [
        f"{lines[0]},other",
        *(f"{line},{value:.3f}" for line, value in zip(lines[1:], rng.normal(size=700), strict=True)),
    ]
    path.write_text("\n".join(rows) + "\n")
    columns = ["--value_cols", "load", *flags.split()]
    train.main(["--csv", str(path), *columns, *map(str, TS_FLAGS), "--epochs", "1", "--run_dir", str(tmp_path / "run")])
    predictor = Predictor.load(tmp_path / "run" / "best.pt")
    predictor.check_golden()
    values = wave(48).tolist()
    item = {"values": values}
    if "calendar" in flags:
        item["times"] = [1_704_067_200 + 3600 * hour for hour in range(48)]
    if "other" in flags:
        item["covariates"] = {"other": [0.0] * 48}
        assert len(predictor.predict([{"values": values[:5], "covariates": {"other": [0.0] * 5}}])[0]["pred"]) == 6
    (answer,) = predictor.predict([item])
    assert all(
        low < pred < high for low, pred, high in zip(answer["lower"], answer["pred"], answer["upper"], strict=True)
    )
    assert predictor.assets["coverage"] == answer["coverage"] == 0.9


def test_too_short_a_file_is_refused_with_both_lengths(tmp_path):
    path = write_series(tmp_path / "data.csv", wave(100))
    done = python("project_ts_forecast.train", "--csv", path, "--win", 90, "--h", 5, "--run_dir", tmp_path / "run")
    assert done.returncode == 2
    assert "--win 90 and --h 5" in done.stderr
    assert "has 70" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_linear_map_is_found():
    """A series that is a linear function of its past, and nothing else, is forecast without error."""
    rng = np.random.default_rng(0)
    values = np.zeros(3000)
    for i in range(2, len(values)):
        values[i] = 1.6 * values[i - 1] - 0.9 * values[i - 2] + (rng.normal() if i % 50 == 0 else 0)
    model = build_model({**CONFIG, "arch": "linear", "h": 1}, 1, 1)
    train_windows, val_windows = (SeriesWindow(values, 48, 1, [part]) for part in ((0, 2000), (2000, 3000)))
    found = fit_linear(model, train_windows, val_windows)
    kicked = 1 / 50  # of the rows hold a surprise of variance 1
    assert found["mse"] < 1.3 * kicked


def test_intervals_cover_what_they_promise_and_follow_a_change():
    rng = np.random.default_rng(0)
    noise = (
        torch.from_numpy(rng.normal(size=(4000, 3, 1)))
        * torch.where(torch.arange(4000) < 2000, 1.0, 3.0)[:, None, None]
    )
    out, spread = torch.zeros(4000, 3, 1, 1, dtype=torch.float64), torch.ones(4000, 1, dtype=torch.float64)
    scores = pair_scores(out, noise, spread, 2)
    fixed = widen(out, spread, radii(scores[:1000], [0.9, 0.5]))
    rolled = widen(out[1000:], spread[1000:], rolling_radii(scores[1000:], scores[:500], [0.9, 0.5]))
    assert (fixed.diff(dim=-1) >= 0).all()

    def covered(bands: torch.Tensor, truth: torch.Tensor, low: int = 0) -> float:
        return ((truth >= bands[..., low]) & (truth <= bands[..., -1 - low])).double().mean().item()

    assert covered(fixed[1000:2000], noise[1000:2000]) == pytest.approx(0.9, abs=0.02)
    assert covered(fixed[1000:2000], noise[1000:2000], 1) == pytest.approx(0.5, abs=0.04)
    assert covered(fixed[3000:], noise[3000:]) < 0.5
    assert covered(rolled[2000:], noise[3000:]) == pytest.approx(0.9, abs=0.02)


def test_rolling_intervals_know_no_truth_before_its_time():
    scores = torch.rand(60, 4, 1, 1)
    start, changed = torch.rand(30, 4, 1, 1), scores.clone()
    changed[20:] = 100.0  # the truth of step k of window 20 is known from window 21 + k on
    before, after = (rolling_radii(s, start, [0.9], every=1) for s in (scores, changed))
    for k in range(4):
        assert torch.equal(before[: 21 + k, k], after[: 21 + k, k])
        assert (before[40, k] != after[40, k]).all()


def test_scores_against_hand_counted_ones():
    y, predicted = torch.tensor([[[1.0], [2.0]], [[3.0], [torch.nan]]]), torch.tensor([[[2.0], [2.0]], [[1.0], [9.0]]])
    found = point_scores(predicted, y, torch.full((2, 1), 2.0))
    assert found["mse"] == {"all": pytest.approx(5 / 3), "steps": [2.5, 0.0]}
    assert found["mase"]["all"] == pytest.approx(0.5)
    assert found["smape"]["steps"] == [pytest.approx((200 / 3 + 100) / 2), 0.0]
    bands = interval_scores(predicted - 1, predicted + 1, y, 0.9)
    assert (bands["coverage"]["all"], bands["width"]["all"]) == (pytest.approx(2 / 3), 2.0)
    assert bands["winkler"]["all"] == pytest.approx((2 + 2 + 2 + 20) / 3)


def test_seasonal_naive_repeats_the_season_and_a_copy_is_noticed():
    windows = SeriesWindow(np.arange(30, dtype=np.float32), win=5, h=7)
    found = seasonal_naive(windows, np.arange(len(windows)), 4, 1)
    assert found[3, :, 0].tolist() == [4, 5, 6, 7, 4, 5, 6]  # window 3 begins the targets at row 8
    rng = np.random.default_rng(0)
    y = rng.normal(size=500).cumsum()
    assert lagged_copy(np.concatenate([np.zeros(3), y[:-3]]), y, 3) == {"lag": 3, "copy": True}
    assert not lagged_copy(y + rng.normal(size=500) / 10, y, 3)["copy"]
    assert autocorrelation(rng.normal(size=1000), 10)["p"] > 0.01
    assert autocorrelation(y, 10)["p"] < 1e-6


def test_many_series_in_bounded_memory(tmp_path, monkeypatch):
    """Dealt out to files, the series come as they do from memory, in the order of their first rows."""
    rng = np.random.default_rng(0)
    path = tmp_path / "many.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["time", "who", "x"])
        for hour in range(5):
            table.writerows([f"2024-01-01 0{hour}:00", f"s{i}", f"{rng.normal():.4f}"] for i in range(600))
    layout = find_layout(path, series_col="who")
    whole = list(series_of(path, layout))
    monkeypatch.setattr(batch_predict, "IN_MEMORY", 0)
    dealt = list(series_of(path, layout))
    assert [raw.name for raw in dealt] == [raw.name for raw in whole] == [f"s{i}" for i in range(600)]
    for one, other in zip(dealt, whole, strict=True):
        assert np.array_equal(one.values, other.values)
        assert np.array_equal(one.times, other.times)
        assert np.array_equal(one.rows, other.rows)


def test_a_correction_counts_only_where_it_helps_in_both_halves():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.normal(size=(400, 3, 1)))
    base, noise = y + torch.from_numpy(rng.normal(size=y.shape)), torch.from_numpy(rng.normal(size=y.shape))
    assert best_gain(base, base + noise, y) == 0.0
    assert best_gain(base, y, y) == 1.0
    assert best_gain(base, 2 * y - base, y) == 0.5
    late = base.clone()
    late[200:] = y[200:]
    assert best_gain(base, late, y) == 0.0


def test_columns_that_were_worked_out_are_the_same_ever_after(tmp_path):
    stamps = np.datetime64("2024-01-01T00:00", "m") + 60 * np.arange(600)
    rows = [
        f"{s},{who},{v:.4f}" for who, seed in (("a", 0), ("b", 1)) for s, v in zip(stamps, wave(600, seed), strict=True)
    ]
    (tmp_path / "two.csv").write_text("time,meter,load\n" + "\n".join(rows) + "\n")
    run_dir, out = tmp_path / "run", tmp_path / "preds.csv"
    train.main(["--csv", str(tmp_path / "two.csv"), "--epochs", "1", "--hidden", "4", "--run_dir", str(run_dir)])
    evaluation.main(["--ckpt", str(run_dir / "best.pt")])
    assert metrics_of(run_dir)["series"] == 2
    batch_predict.main(["--ckpt", str(run_dir / "best.pt"), "--out", str(out)])
    assert [line.split(",")[0] for line in out.read_text().splitlines()] == ["series", "a", "b"]


def test_a_model_that_knows_less_than_the_season_before_leans_on_it(tmp_path):
    rng, hours = np.random.default_rng(0), np.arange(900)
    shape = np.tile(np.cumsum(rng.normal(size=30)), 30)[
        :900
    ]  # of a season of 30, of which the window's end tells little
    path = write_series(tmp_path / "series.csv", shape + rng.normal(0, 0.1, len(hours)))
    flags = ["--csv", path, "--season", 30, "--win", 30, "--h", 30, "--arch", "lstm", "--hidden", 4, "--epochs", 1]
    done = python("project_ts_forecast.train", *flags, "--run_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    done = python("project_ts_forecast.eval", "--ckpt", tmp_path / "run" / "best.pt")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    mse = {name: part["mse"]["all"] for name, part in found["eval"]["test"]["scaled"].items()}
    assert 0 < found["train"]["lean"] <= 1
    assert mse["model"] <= 1.02 * mse["seasonal_naive"] < mse["repeat_last"]
    predictor = Predictor.load(tmp_path / "run" / "best.pt")
    predictor.check_golden()
    assert predictor.model.lean == found["train"]["lean"]


def test_leaning_wants_a_model_that_does_not_surely_win():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.normal(size=(200, 3, 1)))
    near, far = (y + size * torch.from_numpy(rng.normal(size=y.shape)) for size in (0.1, 1.0))
    assert (best_lean(near, far, y), best_lean(far, near, y)) == (0.0, 1.0)
    other = y + torch.from_numpy(rng.normal(size=y.shape))
    assert 0.4 <= best_lean(far, other, y) <= 0.6  # errors of their own: the mean is better than either
    halves = torch.cat([far[:100], near[100:]]), torch.cat([near[:100], far[100:]])
    assert best_lean(near, near, y) == 0.0 < best_lean(*halves, y) < 1
