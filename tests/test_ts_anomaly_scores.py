"""What scores a detector of anomalies: events, rows, thresholds, and the rules of the benchmark."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from common.cli import UserError
from project_ts_forecast.anomaly_scores import choose_threshold, count, read_windows, rows_inside, scores
from tests.anomaly_series import MONDAY, series, stamps
from tests.bench import nab


def test_event_and_row_scores_by_hand():
    flags, unusual = np.zeros(20, bool), np.zeros(20, bool)
    flags[[0, 7, 9, 15]] = True  # row 0 is probation, 7 and 9 are in the first window, 15 is false
    unusual[[0, 7, 8, 9, 15, 16]] = True
    counts = count(flags, [np.arange(5, 10), np.arange(12, 14)], unusual, first=2)
    assert counts == (2, 1, 2, 1, 11, 3, 2, 7)
    found = scores([counts])
    assert found["event"] == {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2}
    assert found["row"] == {"precision": 3 / 5, "recall": 3 / 7, "f1": 1 / 2}
    assert found["false_alarms_per_1000_rows"] == pytest.approx(1000 / 11)
    assert found["delay_rows"] == 2
    both = scores([counts, count(np.zeros(5, bool), [])])
    assert (both["event"], both["false_alarms_per_1000_rows"]) == (found["event"], 1000 / 16)
    nothing = scores([count(np.zeros(5, bool), [])])
    assert (nothing["event"]["precision"], nothing["event"]["recall"], nothing["delay_rows"]) == (None, None, None)


def test_the_threshold_is_the_highest_of_the_best():
    raw = np.zeros(100)
    raw[[20, 50, 80]] = [0.4, 0.6, 0.9]
    windows = [np.arange(48, 55), np.arange(78, 85)]
    threshold, found = choose_threshold([raw], [windows], probation=10, mute=5)
    assert (threshold, found["event"]["f1"], found["false_alarms"]) == (0.6, 1.0, 0)
    with pytest.raises(ValueError, match="no labelled window"):
        choose_threshold([raw], [windows], probation=90, mute=5)


def test_windows_are_read_from_json(tmp_path):
    path = tmp_path / "windows.json"
    path.write_text('{"pump": [["2024-01-01 00:05:00", "2024-01-01 00:15:00.000"]], "fan": []}')
    windows = read_windows(path)
    assert windows == {"pump": [(MONDAY + 300, MONDAY + 900)], "fan": []}
    assert [rows.tolist() for rows in rows_inside(stamps(10), windows["pump"])] == [[1, 2, 3]]
    for text in ("[]", "{", '{"pump": [["2024-01-01"]]}', '{"pump": [["2024-01-02", "2024-01-01"]]}', '{"pump": 3}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"windows\.json"):
            read_windows(path)


def write_nab(folder, n: int = 1000, spikes=(400,), window=(380, 479)) -> None:
    """One file of the benchmark's form with a window, and one without."""
    names = {"made/spike.csv": [list(window)], "made/none.csv": []}
    for number, name in enumerate(names):
        values = series("normal", n, seed=number)
        values[list(spikes) if names[name] else []] += 40
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        stamped = [str(np.datetime64(int(time), "s")).replace("T", " ") for time in stamps(n)]
        path.write_text("timestamp,value\n" + "".join(f"{t},{v}\n" for t, v in zip(stamped, values, strict=True)))
        names[name] = [[f"{stamped[first]}.000000", f"{stamped[last]}.000000"] for first, last in names[name]]
    (folder / "windows.json").write_text(json.dumps(names))


def test_the_benchmark_scores_as_its_rules_say(tmp_path):
    write_nab(tmp_path)
    files = [
        nab.read(tmp_path, name, held) for name, held in json.loads((tmp_path / "windows.json").read_text()).items()
    ]
    assert [file.probation for file in files] == [150, 150]

    def scored(rows: dict[int, float], *weights) -> float:
        """The score of a result that is zero but for these rows of the first file."""
        result = [np.zeros(1000), np.zeros(1000)]
        result[0][list(rows)] = list(rows.values())
        return nab.benchmark_score(files, result, *(weights or nab.PROFILES["standard"]))

    def sigmoid(y: float) -> float:
        return 2 / (1 + math.exp(5 * y)) - 1

    assert scored({}) == 0
    assert scored({380: 1.0}) == 100
    assert scored({380: 1.0, 381: 0.9, 100: 1.0}) == 100  # once per window; row 100 is probation
    assert scored({430: 1.0}) == pytest.approx(50 * (1 + sigmoid(-0.5) / sigmoid(-1)))
    assert scored({380: 0.5, 300: 0.9}) == pytest.approx(100 - 50 * 0.11)  # before any window: the full cost
    assert scored({380: 0.9, 300: 0.5}) == 100  # a threshold that leaves the false alarm out
    assert scored({380: 0.5, 578: 0.5}) == pytest.approx(100 + 50 * 0.11 * sigmoid(99 / 99))
    assert scored({380: 0.5, 300: 0.5}, 1.0, 0.22, 2.0) == pytest.approx(100 * (3 - 0.22) / 3)


def test_the_benchmark_runs_as_a_command(tmp_path, capsys):
    write_nab(tmp_path)
    nab.main(["--nab", str(tmp_path), "--out", str(tmp_path / "out"), "--json"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures) == {"standard", "low_fp", "low_fn"}
    assert min(figures.values()) > 90
    written = (tmp_path / "out" / "made" / "spike.csv").read_text().splitlines()
    assert written[0] == "timestamp,value,anomaly_score,label"
    assert len(written) == 1001
    assert [row.split(",")[3] for row in written[380:483]] == ["0"] + ["1"] * 100 + ["0"] * 2
