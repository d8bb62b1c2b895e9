"""Files as they come: layouts, stamps, gaps, duplicates, missing values; windows, splits and scales."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cli import UserError
from project_ts_forecast.data import (
    SeriesWindow,
    fit_normaliser,
    load_data,
    make_loader,
    scale_of,
    split_rows,
)
from project_ts_forecast.read import find_layout
from project_ts_forecast.repair import Rules
from project_ts_forecast.stamps import (
    DAY,
    HOUR,
    Step,
    calendar,
    infer_step,
    parse_times,
    read_step,
    to_utc,
    write_times,
)

HOURS = [f"2024-01-01 {hour:02}:00" for hour in range(24)]


def load(tmp_path, text: str | bytes, rules: Rules | None = None, step: str = "", **flags):
    path = tmp_path / "data.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_data(path, find_layout(path, **flags), rules or Rules(), step)


def table(values, stamps=HOURS) -> str:
    return "time,x\n" + "".join(f"{stamp},{value}\n" for stamp, value in zip(stamps, values, strict=False))


@pytest.mark.parametrize(
    "text",
    [
        "time;x\n2024-01-01 00:00;1,5\n2024-01-01 01:00;-1.234,25\n2024-01-01 02:00;3\n",
        "\ufefftime,x\r\n2024-01-01T00:00,1.5\r\n2024-01-01T01:00,-1234.25\r\n\r\n2024-01-01T02:00,3\r\n",
        "time\tx\n2024-01-01T00:00Z\t1.5\n2024-01-01T02:00+01:00\t-1234.25\n2024-01-01T02:00:00+0000\t3e0\n",
        "time|x\n1704067200|1.5\n1704070800|-1234.25\n1704074400|3\n",
        "time,x\n1704067200000,1.5\n1704070800000,-1234.25\n1704074400000,3\n",
        "2024-01-01 00:00,1.5\n2024-01-01 01:00,-1234.25\n2024-01-01 02:00,3\n",
        '"time","x"\n"2024/01/01 00:00","1.5"\n"2024/01/01 01:00","-1234.25"\n"2024/01/01 02:00","3"\n',
        "time,x\n2024-01-01 00:00,1.5\n2024-01-01 01:00,-1234.25\n2024-01-01 02:00,3\n".encode("utf-16"),
    ],
)
def test_the_same_rows_in_any_spelling(tmp_path, text):
    data = load(tmp_path, text)
    (piece,) = data.pieces
    assert piece.values[:, 0].tolist() == [1.5, -1234.25, 3.0]
    assert (data.step, piece.start) == (Step("time", HOUR), 1_704_067_200_000_000)


def test_long_wide_and_channels(tmp_path):
    long = "when,who,x,note\n" + "".join(f"{s},{w},{i},7\n" for i, s in enumerate(HOURS) for w in ("a", "b"))
    data = load(tmp_path, long, time_col="when", series_col="who", value_cols=["x"], covariate_cols=["note"])
    assert [(p.name, p.values.shape) for p in data.pieces] == [("a", (24, 2)), ("b", (24, 2))]
    wide = "time,a,b\n" + "".join(f"{s},{i},{-i}\n" for i, s in enumerate(HOURS))
    assert [(p.name, p.values[3, 0]) for p in load(tmp_path, wide, wide=True).pieces] == [("a", 3.0), ("b", -3.0)]
    (piece,) = load(tmp_path, wide).pieces
    assert (piece.name, piece.values[3].tolist()) == ("", [3.0, -3.0])


def test_a_column_of_words_names_the_series_and_nothing_else_does(tmp_path):
    rows = "".join(f"{s},{w},{i}\n" for i, s in enumerate(HOURS) for w in ("a", "b"))
    assert [piece.name for piece in load(tmp_path, "time,who,x\n" + rows).pieces] == ["a", "b"]
    with pytest.raises(UserError, match="pass --series_col note"):
        load(tmp_path, "time,note,x\n" + "".join(f"{s},note {i},{i}\n" for i, s in enumerate(HOURS)))


@pytest.mark.parametrize("missing", ["", "NaN", "nan", "NA", "N/A", "null", "None", "-", "#N/A", "inf"])
def test_a_missing_value_is_counted_and_filled(tmp_path, missing):
    data = load(tmp_path, table([1, 2, missing, 4]))
    assert data.pieces[0].values[:, 0].tolist() == [1, 2, 2, 4]
    assert data.pieces[0].filled.tolist() == [False, False, True, False]
    assert (data.counts["missing_values"], data.counts["filled_rows"]) == (1, 1)


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        (Rules(fill="last"), [[1, 2, 2, 2, 5, 6]]),
        (Rules(fill="linear"), [[1, 2, 3, 4, 5, 6]]),
        (Rules(fill="seasonal", season=2), [[1, 2, 1, 2, 5, 6]]),
        (Rules(fill="none"), [[1, 2], [5, 6]]),
        (Rules(fill="last", max_gap=1), [[1, 2], [5, 6]]),
    ],
)
@pytest.mark.parametrize("how", ["rows", "cells"])
def test_a_gap_is_filled_by_the_rule_or_cuts_the_series(tmp_path, rules, wanted, how):
    rows = [(0, 1), (1, 2), (4, 5), (5, 6)] if how == "rows" else [*enumerate([1, 2, "", "", 5, 6])]
    data = load(tmp_path, "time,x\n" + "".join(f"{HOURS[i]},{v}\n" for i, v in rows), rules)
    assert [piece.values[:, 0].tolist() for piece in data.pieces] == wanted
    assert data.counts["cuts"] == len(wanted) - 1


def test_duplicates_equal_and_conflicting(tmp_path):
    text = table([1, 2, 3]) + f"{HOURS[2]},3\n{HOURS[1]},8\n"
    for rule, wanted in (("last", 8.0), ("first", 2.0), ("mean", 5.0)):
        data = load(tmp_path, text, Rules(on_duplicate=rule))
        assert data.pieces[0].values[:, 0].tolist() == [1, wanted, 3]
        found = [data.counts[key] for key in ("duplicates_equal", "duplicates_conflicting", "backward_stamps")]
        assert found == [1, 1, 1]
    with pytest.raises(UserError, match="row 6: a second row for one stamp"):
        load(tmp_path, text, Rules(on_duplicate="refuse"))
    with pytest.raises(UserError, match="row 6: its stamp is earlier"):
        load(tmp_path, text, Rules(on_unsorted="refuse"))


def test_irregular_stamps(tmp_path):
    stamps = [*HOURS[:5], "2024-01-01 05:07", "2024-01-01 06:25", *HOURS[7:]]
    with pytest.raises(UserError, match=r"row 8: its stamp is 0.42 steps of 1 h off the grid"):
        load(tmp_path, table(range(24), stamps))
    data = load(tmp_path, table(range(24), stamps), Rules(on_irregular="snap"))
    assert (len(data.pieces[0]), data.counts["off_grid_stamps"]) == (24, 2)
    assert len(load(tmp_path, table(range(24), stamps), step="rows").pieces[0]) == 24
    rng = np.random.default_rng(0)
    random = [str(s) for s in np.datetime64("2024-01-01") + rng.integers(0, 10**6, 50).cumsum().astype("m8[s]")]
    with pytest.raises(UserError, match="irregular: no distance between rows is usual"):
        load(tmp_path, table(range(50), random))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("time,x\n", "a header and no rows"),
        ("time,x\n2024-01-01,1\n2024-01-02,12 kW\n", "'x' holds text such as"),
        ("time,x\n" + "2024-01-01,1\n" * 300 + "2024-01-02,twelve\n", "row 302, column 'x': 'twelve' is no number"),
        ("time,x\n2024-01-01,1\n2024-01-02,1,2\n2024-01-03,4\n", "row 3 has 3 cells, wanted 2"),
        ("time,x\n2024-01-01,1\n01.02.2024,2\n", "row 3: the stamp '01.02.2024'"),
        ("time,x,x\n2024-01-01,1,2\n", "column names must be there and differ"),
        ("time,x\n2024-01-01,\n2024-01-02,NaN\n", "no row with a value is left"),
        ("time,x\n2024-01-01,1\n", "no two stamps of one series"),
        (b"time,x\n\0\0", "zero bytes"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        load(tmp_path, text)


def test_a_constant_series_is_told_and_scaled_by_one(tmp_path):
    data = load(tmp_path, table([3] * 24))
    normaliser = fit_normaliser(data.pieces, [(0, 24)])
    assert (data.counts["constant_series"], normaliser["std"].tolist()) == (1, [[1.0], [1.0]])


def test_clocks_that_change():
    """The hour that comes twice in autumn is told apart, the one that spring skips leaves no gap."""
    autumn, _ = parse_times(["2024-10-27 01:30", "2024-10-27 02:30", "2024-10-27 02:30", "2024-10-27 03:30"])
    assert np.diff(to_utc(autumn, "Europe/Berlin")).tolist() == [HOUR] * 3
    spring, _ = parse_times(["2024-03-31 01:30", "2024-03-31 03:30"])
    assert np.diff(to_utc(spring, "Europe/Berlin")).tolist() == [HOUR]
    written = write_times(to_utc(autumn, "Europe/Berlin"), {"kind": "iso", "sep": " ", "unit": "m"}, "Europe/Berlin")
    assert written[1:3] == ["2024-10-27 02:30:00+02:00", "2024-10-27 02:30:00+01:00"]


@pytest.mark.parametrize(
    ("texts", "step", "after"),
    [
        (["2024-01-31", "2024-02-29", "2024-03-31"], Step("months", 1), ["2024-04-30", "2024-05-31"]),
        (["1949-01", "1949-02", "1949-03"], Step("months", 1), ["1949-04", "1949-05"]),
        (["2001", "2002", "2003"], Step("months", 12), ["2004", "2005"]),
        (["20240101", "20240102", "20240103"], Step("time", DAY), ["2024-01-04", "2024-01-05"]),
        (["1704067200", "1704067260"], Step("time", HOUR // 60), ["1704067320", "1704067380"]),
        (["2024-01-01T00:00:00+02:00", "2024-01-01T00:15:00+02:00"], Step("time", HOUR // 4), None),
    ],
)
def test_steps_and_stamps_of_what_follows(texts, step, after):
    times, style = parse_times(texts)
    assert infer_step([times]) == step
    told = write_times(step.at(int(times[0]), np.arange(len(texts), len(texts) + 2)), style)
    assert told == (after or ["2023-12-31T22:30:00+00:00", "2023-12-31T22:45:00+00:00"])


def test_steps_as_flags():
    assert [str(read_step(text)) for text in ("15min", "h", "3mo", "rows", "2w")] == [
        "15 min",
        "1 h",
        "3 months",
        "1 row",
        "2 w",
    ]
    with pytest.raises(UserError, match="--step 0h"):
        read_step("0h")


def test_the_calendar_turns_by_day_week_and_year():
    times = np.arange(24 * 7) * HOUR
    waves = calendar(times, Step("time", HOUR))
    assert waves.shape == (168, 6)
    assert np.allclose(waves[:24, :2], waves[24:48, :2], atol=1e-6)
    assert not np.allclose(waves[:24, 2:4], waves[24:48, 2:4], atol=0.1)
    assert calendar(times, Step("time", DAY)).shape == (168, 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 8), st.integers(1, 5), st.booleans())
def test_windows_stay_in_their_series_and_targets_in_their_rows(lengths, win, h, pad):
    parts = [np.arange(n, dtype=np.float32)[:, None] + 1000 * i for i, n in enumerate(filter(None, lengths))]
    rows = [(len(part) // 3, len(part)) for part in parts]
    windows = SeriesWindow(parts, win, h, rows, pad) if parts else []
    wanted = sum(max(0, b - h + 1 - max(a, 1 if pad else win)) for a, b in rows)
    assert len(windows) == wanted
    for i in range(len(windows)):
        x, y = windows[i]
        series = int(y[0, 0]) // 1000
        assert (y[:, 0].diff() == 1).all()
        assert int(y[0, 0]) % 1000 >= rows[series][0]
        assert int(x[-1, 0]) == int(y[0, 0]) - 1
        assert (x[:, 0].diff() >= 0).all()
        assert int(x[0, 0]) // 1000 == series


def test_windows_are_views_and_batches_come_whole():
    series = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    windows = SeriesWindow(series, win=64, h=12)
    assert np.shares_memory(windows.pasts, series)
    batches = list(make_loader(windows, bs=100))
    assert [x.shape for x, _ in batches] == [(100, 64, 3)] * 4 + [(25, 64, 3)]
    assert torch.equal(batches[1][0][5], torch.from_numpy(series[105:169]))
    assert torch.equal(batches[1][1][5], torch.from_numpy(series[169:181]))


def test_splits_by_share_row_and_stamp(tmp_path):
    (piece,) = load(tmp_path, table(range(20))).pieces
    for spec in ("0.5,0.25,0.25", "10,15,20", f"{HOURS[10]},{HOURS[15]},{HOURS[20]}"):
        assert split_rows([piece], spec) == {"train": [(0, 10)], "val": [(10, 15)], "test": [(15, 20)]}
    for wrong in ("0.5,0.5", "a,b,c", "0.9,0.9,0.9", "20,10,30"):
        with pytest.raises(UserError):
            split_rows([piece], wrong)


def test_the_scale_is_fitted_on_train_rows_only_and_by_series(tmp_path):
    rows = [
        f"{HOURS[i]},{name},{i + 100 * j + (1e6 if i >= 10 else 0)}" for j, name in enumerate("ab") for i in range(20)
    ]
    data = load(tmp_path, "time,who,x\n" + "\n".join(rows), series_col="who")
    normaliser = fit_normaliser(data.pieces, split_rows(data.pieces, "10,15,20")["train"])
    assert [scale_of(normaliser, name)[0].tolist() for name in ("a", "b")] == [[4.5], [104.5]]
    assert scale_of(normaliser, "new")[0].tolist() == [54.5]


def test_filled_values_are_seen_and_never_scored(tmp_path):
    from project_ts_forecast.data import with_targets

    data = load(tmp_path, table([1, 2, "", 4, 5, 6]))
    part = with_targets(data.pieces[0], fit_normaliser(data.pieces, [(0, 6)]), 1, False)
    assert np.isnan(part.y[:, 0]).tolist() == [False, False, True, False, False, False]
    assert not np.isnan(part.x).any()


def test_nothing_is_counted_in_clean_rows(tmp_path):
    data = load(tmp_path, table(range(24)))
    assert +data.counts == Counter(rows=24, series=1)
