"""Single rows to /observe: scores, flags and forecasts, repeated stamps, bounds, and what a restart keeps."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from common.cli import UserError
from project_ts_forecast.anomaly import detect
from project_ts_forecast.calibrate import collect
from project_ts_forecast.conformal import widen
from project_ts_forecast.data import SeriesWindow, scale_of
from project_ts_forecast.decode import ValuesError
from project_ts_forecast.eval import rolling
from project_ts_forecast.inference import Predictor
from project_ts_forecast.rolled import RolledRadius
from project_ts_forecast.sessions import Sessions
from project_ts_forecast.streams import Streams
from tests.conftest import python, wave
from tests.tiny_models import served

HOUR = 3600
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def predictor(wave_run) -> Predictor:
    return Predictor.load(wave_run / "best.pt")


def item(hour: int, value: float | None, series_id: str = "pump") -> dict:
    return {"series_id": series_id, "time": 1_704_067_200 + HOUR * hour, "value": value}


def feed(streams: Streams, values, start: int = 0, series_id: str = "pump") -> list[dict]:
    return [
        streams.predict_rows([streams.decode(item(hour, value, series_id))])[0]
        for hour, value in enumerate(values, start)
    ]


def test_rows_one_by_one_give_the_scores_of_the_whole_and_the_forecast_of_the_window(predictor):
    values = wave(400, seed=1)
    values[350] += 60
    answers = feed(Streams(predictor, Sessions()), values.tolist())
    seconds = 1_704_067_200 + HOUR * np.arange(400)
    found = detect(seconds, values, channels=["load"], **predictor.assets["anomaly"])
    assert [answer["score"] for answer in answers] == found.score.tolist()
    assert (answers[350]["anomaly"], answers[350]["channel"]) == (True, "load")
    assert (answers[46]["pred"], answers[46]["rows_wanted"]) == (None, 1)
    assert answers[-1]["rows_wanted"] == 0
    (wanted,) = predictor.predict([values.tolist()])
    assert answers[-1]["pred"] == pytest.approx(wanted["pred"], rel=1e-6)


def test_a_repeated_stamp_changes_nothing(predictor):
    values = wave(80).tolist()
    once, twice = Streams(predictor, Sessions()), Streams(predictor, Sessions())
    for hour, value in enumerate(values):
        first, *again = (feed(twice, [v], hour)[0] for v in (value, value, 99.0))
        assert again == [first, first] == [feed(once, [value], hour)[0]] * 2


def test_a_missing_row_is_filled_and_a_long_gap_begins_anew(predictor):
    streams, values = Streams(predictor, Sessions()), wave(48).tolist()
    feed(streams, values)
    (after,) = feed(streams, [20.0], start=50)  # two hours are missing, three are filled
    (wanted,) = predictor.predict([[*values, None, None, 20.0]])
    assert after["pred"] == pytest.approx(wanted["pred"], rel=1e-6)
    assert feed(streams, [20.0], start=60)[0]["rows_wanted"] == 47


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"series_id": "pump", "value": 1.0}, "wanted series_id, time, value"),
        (item(5, 1.0) | {"series_id": ""}, "series_id"),
        (item(5, 1.0) | {"value": "1"}, "wanted a number"),
        (item(5, 1.0) | {"value": [1.0, 2.0]}, "wanted a number"),
        (item(5, 1.0) | {"time": "yesterday"}, "neither ISO 8601"),
        (item(-1, 1.0), "earlier than the last"),
        (item(9, 1.0) | {"time": 1_704_067_200 + HOUR * 9 + 1700}, "steps of 1 h after the last"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_and_changes_nothing(predictor, wrong, words):
    streams = Streams(predictor, Sessions())
    feed(streams, [20.0, 21.0])
    before = streams.sessions.held["pump"].state()
    with pytest.raises(ValuesError, match=words):
        streams.decode(wrong)
    assert streams.sessions.held["pump"].state() == before


def test_memory_is_bounded_in_rows_and_in_series(predictor):
    streams = Streams(predictor, Sessions(most=2))
    feed(streams, wave(300).tolist(), series_id="a")
    assert len(streams.sessions.held["a"].values) == predictor.win + predictor.assets["season"]
    for name in ("b", "a", "c"):
        feed(streams, [20.0], start=300, series_id=name)
    assert list(streams.sessions.held) == ["a", "c"]  # b was quiet longest


def test_a_restart_keeps_what_was_seen(wave_run, predictor, tmp_path):
    values, file = wave(60, seed=2).tolist(), tmp_path / "sessions.json"
    flags = ["project_ts_forecast.serve", "--ckpt", wave_run / "best.pt", "--sessions_file", file]

    def post(url: str, hour: int) -> dict:
        body = json.dumps(item(hour, values[hour])).encode()
        with urllib.request.urlopen(f"{url}/observe", body, timeout=60) as reply:
            return json.load(reply)

    with served(*flags) as url:
        for hour in range(50):
            post(url, hour)
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=60) as reply:
            assert "/observe" in json.load(reply)["paths"]
    with served(*flags) as url:
        kept = [post(url, hour) for hour in range(50, 60)]
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(url, 3)
        assert "earlier than the last" in json.load(caught.value)["error"]
    uncut = feed(Streams(predictor, Sessions()), values)
    for key in ("score", "pred", "upper"):
        assert [answer[key] for answer in kept] == [pytest.approx(answer[key], rel=1e-6) for answer in uncut[50:]]


def test_a_stream_has_the_rolling_intervals_of_an_evaluation(predictor):
    values = wave(420, seed=5)
    values[200:] += np.random.default_rng(5).normal(0, 1.0, 220)  # noisier than the training was
    answers = feed(Streams(predictor, Sessions()), values.tolist())[predictor.win - 1 : -predictor.h]
    mean, std = (float(part[0]) for part in scale_of(predictor.assets["normaliser"], "pump"))
    windows = SeriesWindow(((values - mean) / std).astype(np.float32), predictor.win, predictor.h)
    held = collect(predictor, windows, 64)
    rolled = rolling(predictor, held, windows)
    bands = widen(held["out"], held["spread"], rolled)[:, :, 0].double().numpy() * std + mean
    assert [answer["lower"] for answer in answers] == pytest.approx(bands[..., 0], rel=1e-4)
    assert [answer["quantiles"]["0.75"] for answer in answers] == pytest.approx(bands[..., 3], rel=1e-4)
    radius = rolled[:, 0, 0, 0]
    assert radius[-1] > 1.1 * radius[0]


def test_long_horizons_and_missing_rows_are_covered_too():
    rng, h, rows = np.random.default_rng(0), 60, 3000
    size = np.sqrt(np.arange(1, h + 1))[:, None, None]  # of errors, as the horizon grows
    rolled = RolledRadius(torch.full((500, h, 1, 1), 0.1), h, [0.9])
    values, inside = rng.normal(size=rows + h), []
    for row in range(rows):
        if row % 50 == 49:
            continue  # a row that never came
        truth = np.array([np.nan if row % 40 == 3 else 1e6])
        centre = 1e6 + size * values[row]
        radius = rolled.take(row, truth, np.concatenate([centre, centre], -1), np.ones(1), [0.9])
        inside.append(np.abs(centre[..., 0] - 1e6) <= radius[..., 0])
    share = np.mean(inside[1000:], 0)[:, 0]
    assert share == pytest.approx(0.9, abs=0.03)
    again = RolledRadius.restored(json.loads(json.dumps(rolled.state())))
    ends = np.full((h, 1, 2), 1e6)
    assert (again.take(rows, truth, ends, np.ones(1), [0.9]) == rolled.take(rows, truth, ends, np.ones(1), [0.9])).all()


def test_what_was_seen_is_saved_while_it_runs(predictor, tmp_path):
    file, sessions, until = tmp_path / "sessions.json", Sessions(), time.monotonic() + 60
    with sessions.kept(file, every=0.05):
        feed(Streams(predictor, sessions), wave(50, seed=2).tolist())
        found = Sessions()
        while "pump" not in found.held or found.held["pump"].row < 49:
            assert time.monotonic() < until, "it was never saved"
            time.sleep(0.01)
            found.load(file)
    next_one = [feed(Streams(predictor, one), [21.0, 23.0], start=50) for one in (found, sessions)]
    assert next_one[0] == next_one[1]
    file.unlink()
    with found.kept(file):
        found.unsaved = False
    assert not file.exists()  # without news it is not written


def test_a_damaged_file_of_sessions_is_refused(tmp_path):
    (tmp_path / "sessions.json").write_text('{"format": 1, "series": {"a": {}}}')
    with pytest.raises(UserError, match="move the file away"):
        Sessions().load(tmp_path / "sessions.json")


def test_several_workers_and_sessions_are_refused(wave_run):
    done = python("project_ts_forecast.serve", "--ckpt", wave_run / "best.pt", "--workers", 2)
    assert (done.returncode, "--sessions 0" in done.stderr) == (2, True)


def test_observed_rows_in_a_forecast_are_scored(predictor):
    values = wave(400, seed=3).tolist()
    (quiet,) = predictor.predict([{"values": values[:398], "observed": values[398:]}])
    (loud,) = predictor.predict([{"values": values[:398], "observed": [values[398], 90.0]}])
    assert (quiet["anomaly"], loud["anomaly"]) == (False, True)
    assert (loud["flags"], loud["channels"]) == ([False, True], [None, "load"])
    assert quiet["pred"] == loud["pred"]
