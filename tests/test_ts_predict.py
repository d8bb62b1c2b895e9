"""CSV, HTTP and Python agree, and what cannot be used is refused in words."""

from __future__ import annotations

import csv
import io
import json
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from project_ts_forecast.batch_predict import last_or_all, series_of, write_csv
from project_ts_forecast.cells import joined, numbers, quoted, texts
from project_ts_forecast.decode import ValuesError
from project_ts_forecast.inference import Predictor
from project_ts_forecast.read import find_layout
from project_ts_forecast.repair import Rules
from project_ts_forecast.sessions import Sessions
from tests.conftest import python, wave, write_series
from tests.tiny_models import served

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def predictor(wave_run) -> Predictor:
    return Predictor.load(wave_run / "best.pt")


def post(url: str, body: dict) -> dict:
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as reply:
        return json.load(reply)


def refused(url: str, body: dict) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(url, body)
    return caught.value.code, json.load(caught.value)["error"]


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_http_and_python_agree(wave_csv, wave_run, predictor, tmp_path):
    done = python("project_ts_forecast.batch_predict", "--ckpt", wave_run / "best.pt", "--out", tmp_path / "preds.csv")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "preds.csv")
    assert list(rows[0]) == ["series", "origin", "step", "time", "pred", "lower", "upper"]
    assert (rows[0]["origin"], rows[0]["time"], rows[-1]["step"]) == ("2024-02-19T23:00", "2024-02-20T00:00", "6")
    values = [float(row["load"]) for row in rows_of(wave_csv)]
    (answer,) = predictor.predict([values])
    with served("project_ts_forecast.serve", "--ckpt", wave_run / "best.pt") as url:
        asked = post(f"{url}/forecast", {"values": values})
        both = post(f"{url}/forecast", {"items": [values, {"series": {"load": values}}]})
        few, wrong = ({"values": values[:40]}, {"values": [*values[:-1], "x"]})
        assert refused(f"{url}/forecast", few) == (422, "40 rows, and the model looks back on 48; send at least 48")
        assert refused(f"{url}/forecast", wrong)[0] == 422
        for body, words in (
            ({"values": 7}, '"values": found a whole number'),
            ({"series": "x"}, '"series": found a string'),
        ):
            status, found = refused(f"{url}/forecast", body)
            assert (status, found.startswith(words)) == (400, True)
        assert refused(f"{url}/observe", {"series_id": 1, "time": "2024-01-01", "value": 3.0})[0] == 400
    for key in ("pred", "lower", "upper"):
        found = [float(row[key]) for row in rows]
        assert found == pytest.approx(asked[key], rel=1e-6)
        assert asked[key] == pytest.approx(answer[key], rel=1e-6)
        assert both["items"][0][key] == pytest.approx(both["items"][1][key], rel=1e-9)
    assert asked["quantiles"].keys() == {"0.05", "0.25", "0.5", "0.75", "0.95"}
    ordered = np.array(list(asked["quantiles"].values()))
    assert (np.diff(ordered, axis=0) >= 0).all()


def test_a_forecast_does_not_depend_on_its_neighbours(predictor):
    pasts = [wave(48, seed).tolist() for seed in range(40)]
    together, alone = predictor.predict(pasts), [predictor.predict([past])[0] for past in pasts]
    for one, other in zip(together, alone, strict=True):
        assert one["pred"] == pytest.approx(other["pred"], rel=1e-5)


def test_a_missing_value_is_filled_as_in_training_and_told(predictor):
    values = wave(60).tolist()
    (filled,) = predictor.predict([[*values[:-2], None, values[-1]]])
    (same,) = predictor.predict([[*values[:-2], values[-3], values[-1]]])
    assert (filled["pred"], filled["filled"]) == (same["pred"], 1)
    with pytest.raises(ValuesError, match="5 rows of the last 48 have missing values, at most 3 in a row are filled"):
        predictor.predict([[*values[:-6], *[None] * 5, values[-1]]])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ([], "wanted a list of numbers"),
        ([1.0] * 47 + [True], "number 48 is 'True'"),
        ("12, 13", "wanted a list of numbers"),
        ({"values": [1.0] * 48, "value": 3}, 'unknown key "value"'),
        ({"values": [1.0] * 48, "times": ["2024-01-01"]}, "wanted 48 stamps"),
        ({"values": [1.0] * 48, "times": ["2024-01-01"] * 48}, "stamps one step of 1 h apart"),
        ({"series": {"temperature": [1.0] * 48}}, "wanted load"),
        ([1e300] * 48, "a million deviations"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(predictor, item, words):
    with pytest.raises(ValuesError, match=words):
        predictor.decode(item)


def test_stamps_of_the_request_give_stamps_of_the_steps(predictor):
    times = [f"2024-03-0{1 + hour // 24}T{hour % 24:02}:00" for hour in range(48)]
    (answer,) = predictor.predict([{"values": wave(48).tolist(), "times": times}])
    assert answer["times"] == [f"2024-03-03T0{hour}:00" for hour in range(6)]


def test_golden_replay_notices_other_weights(wave_run):
    predictor = Predictor.load(wave_run / "best.pt")
    predictor.check_golden()
    with torch.no_grad():
        predictor.model.linear.map.bias += 0.1
    with pytest.raises(Exception, match="golden replay: forecasts moved"):
        predictor.check_golden()


def test_rolling_and_wide_rows(wave_run, predictor, tmp_path):
    path, flags = write_series(tmp_path / "short.csv", wave(60)), ["--ckpt", wave_run / "best.pt", "--rolling"]
    for form in ("tidy", "wide"):
        out = tmp_path / f"{form}.csv"
        done = python("project_ts_forecast.batch_predict", *flags, "--csv", path, "--out", out, "--form", form)
        assert done.returncode == 0, done.stderr
    tidy, wide = rows_of(tmp_path / "tidy.csv"), rows_of(tmp_path / "wide.csv")
    assert (len(wide), len(tidy)) == (13, 13 * 6)
    assert list(wide[0]) == ["series", "t", *(f"t+{step}" for step in range(1, 7))]
    for i, row in enumerate(wide):
        steps = tidy[6 * i : 6 * i + 6]
        assert [row["t"], *(row[f"t+{step}"] for step in range(1, 7))] == [
            steps[0]["origin"],
            *(step["pred"] for step in steps),
        ]
    values = [float(row["load"]) for row in rows_of(path)]
    assert [float(row["pred"]) for row in tidy[-6:]] == pytest.approx(predictor.predict([values])[0]["pred"], rel=1e-6)


def test_numbers_are_written_as_they_are_read():
    rng = np.random.default_rng(0)
    values = (
        rng.normal(size=4000)
        * 10.0 ** np.repeat([np.arange(-12, 12), rng.integers(-280, 300, 24)], 2000 // 24 + 1)[:4000]
    )
    edges = [0.0, -0.0, 1.0, -10.0, 999.9999999999999, 99999999.96, 123456789.0, 1e9, 1e-5, -9.99999999996e-6, 1e300]
    values = np.concatenate([values, edges])
    lines = joined([texts(["x"]), numbers(values[:, None])], values.shape).decode().splitlines()
    found = np.array([float(line.removeprefix("x,")) for line in lines])
    usual = (np.abs(values) >= 1e-5) & (np.abs(values) < 1e9)
    assert found == pytest.approx(values, rel=5e-7)
    assert found[usual] == pytest.approx(values[usual], rel=5e-9)
    odd = np.array([[np.inf, -np.inf, np.nan, 1e-300]])
    assert joined([numbers(odd)], (1,)) == b",inf,-inf,nan,0.00000000\n"


def test_names_and_stamps_are_quoted_as_csv_wants_it():
    names = ['pump, "north"', "Ölpumpe", "", "two\nlines"]
    block = joined([texts([quoted(name) for name in names]), numbers(np.arange(4.0)[:, None])], (4,))
    assert [row[0] for row in csv.reader(io.StringIO(block.decode(), newline=""))] == names


def test_threads_and_their_order_change_nothing(wave_csv, predictor, tmp_path):
    layout, rules, found = find_layout(wave_csv), Rules(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        pieces = last_or_all(series_of(wave_csv, layout), predictor, rules, True, Counter(), {})
        assert write_csv(predictor, pieces, tmp_path / "out.csv", 16, True, "tidy") == 1200 - 48 + 1
        found.append(rows_of(tmp_path / "out.csv"))
    for one, other in zip(*found, strict=True):
        assert [one[key] for key in ("origin", "step")] == [other[key] for key in ("origin", "step")]
        assert float(one["pred"]) == pytest.approx(float(other["pred"]), rel=1e-5)


def test_monitoring_sees_stamps_that_come_late(wave_csv, predictor):
    rows = rows_of(wave_csv)[-48:]
    values, hours = [float(row["load"]) for row in rows], np.arange(48)
    assert predictor.reference["features"]["late"]["counts"].keys() == {"no"}
    found = {}
    for minutes in (0, 3, 15):
        times = [f"2024-03-{1 + hour // 24:02d}T{hour % 24:02d}:{minutes * (hour == 40):02d}" for hour in hours]
        row = predictor.decode({"values": values, "times": times})
        found[minutes] = predictor.features([row], [])["late"]
    assert found == {0: ["no"], 3: ["no"], 15: ["yes"]}  # a tenth of a step is six minutes
    assert predictor.features([predictor.decode(values)], [])["late"] == ["no"]


def test_monitoring_sees_a_row_that_was_observed_late(wave_csv, predictor):
    sessions, rows = Sessions(), rows_of(wave_csv)[-50:]
    late = []
    for hour, row in enumerate(rows):
        stamp = f"2024-03-{1 + hour // 24:02d}T{hour % 24:02d}:{12 * (hour == 49):02d}"
        seen = sessions.observe(predictor, {"series_id": "a", "time": stamp, "value": float(row["load"])})
        late.append(seen.row.late if seen.row else None)
    assert late[-3:] == [False, False, True]
