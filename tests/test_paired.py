"""Paired comparison: right about chance, about slices, and about examples that hang together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from common.cli import UserError
from common.eval_rows import read_rows, rows_file, write_rows
from common.paired import compare_rows, interval, sign_test


def rows(correct, **columns):
    n = len(correct)
    return {"id": list(map(str, range(n))), "truth": ["a"] * n, "correct": list(map(str, correct)), **columns}


def by_slice(found):
    return {one["slice"]: one for one in found}


def test_the_same_model_is_never_worse_and_a_broken_one_is():
    rng = np.random.default_rng(0)
    good = (rng.random(400) < 0.9).astype(int)
    classes = {"slice.class": [f"c{i % 4}" for i in range(400)]}
    same = compare_rows(rows(good, **classes), rows(good, **classes))
    assert [one["slice"] for one in same] == ["all", "class=c0", "class=c1", "class=c2", "class=c3"]
    assert all(one["interval"] == [0, 0] and not one["worse"] for one in same)
    bad = good.copy()
    bad[1::4] = 0  # one class is lost
    found = by_slice(compare_rows(rows(bad, **classes), rows(good, **classes)))
    assert {name for name, one in found.items() if one["worse"]} == {"all", "class=c1"}
    assert found["class=c1"]["candidate"] == 0
    assert found["all"]["difference"] == pytest.approx(bad.mean() - good.mean())
    assert found["all"]["interval"][0] < found["all"]["difference"] < found["all"]["interval"][1] < 0
    better = by_slice(compare_rows(rows(good, **classes), rows(bad, **classes)))
    assert not any(one["worse"] for one in better.values())


def test_margins_and_small_slices():
    good, bad = np.ones(200, int), np.ones(200, int)
    bad[:20] = 0
    kinds = {"slice.kind": ["few"] * 20 + ["many"] * 180}
    found = by_slice(compare_rows(rows(bad, **kinds), rows(good, **kinds), margin=0.2))
    assert not found["all"]["worse"]
    assert "kind=few" not in found  # 20 are fewer than 30
    found = by_slice(compare_rows(rows(bad, **kinds), rows(good, **kinds), min_slice=20, slice_margin=0.5))
    assert found["kind=few"]["worse"]
    assert found["all"]["worse"]


def test_the_sign_test_is_exact():
    d = np.array([-1] * 8 + [1] * 2 + [0] * 90)
    assert sign_test(d, np.arange(100)) == pytest.approx(binomtest(2, 10, alternative="less").pvalue)
    assert sign_test(d, np.repeat(np.arange(50), 2)) == 0  # examples that hang together: it does not apply
    assert sign_test(d * 0.5, np.arange(100)) == 0
    bad = np.ones(40, int)
    bad[:4] = 0  # 4 losses and no win: a chance of 1 in 16, although the bootstrap's interval lies below 0
    (found,) = compare_rows(rows(bad), rows(np.ones(40, int)))
    assert found["interval"][1] < 0
    assert not found["worse"]


def test_lower_losses_are_better():
    rng = np.random.default_rng(1)
    loss = rng.exponential(1.0, 500)
    table = lambda values: {"id": [str(i) for i in range(500)], "loss": [repr(float(v)) for v in values]}  # noqa: E731
    (worse,) = compare_rows(table(loss * 1.3), table(loss))
    (better,) = compare_rows(table(loss * 0.7), table(loss))
    assert (worse["worse"], better["worse"]) == (True, False)
    assert worse["difference"] == pytest.approx(-0.3 * loss.mean())


def test_the_interval_is_that_of_the_binomial():
    d = np.array([1] * 30 + [-1] * 20 + [0] * 150)
    low, high = interval(d, np.arange(200), 0.025, seed=0)
    spread = 1.96 * d.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((d.mean() - spread, d.mean() + spread), abs=0.006)


def test_examples_that_hang_together_widen_the_interval():
    rng = np.random.default_rng(2)
    blocks = np.repeat(rng.normal(0, 1, 40), 25)  # 40 independent values, each 25 times
    alone = interval(blocks, np.arange(1000), 0.025, seed=0)
    together = interval(blocks, np.repeat(np.arange(40), 25), 0.025, seed=0)
    assert together[1] - together[0] == pytest.approx(5 * (alone[1] - alone[0]), rel=0.15)


def test_equally_good_models_are_seldom_called_worse():
    rng = np.random.default_rng(3)
    classes = {"slice.class": [f"c{i % 10}" for i in range(400)]}
    overall = slices = 0
    for _ in range(60):
        hard = rng.random(400)
        a, b = ((hard + rng.normal(0, 0.2, 400) < 0.8).astype(int) for _ in range(2))
        found = compare_rows(rows(a, **classes), rows(b, **classes))
        overall += found[0]["worse"]
        slices += any(one["worse"] for one in found[1:])
    assert overall <= 6  # 2.5 % wanted; more than 6 of 60 has a chance below 1 in 1,000
    assert slices <= 6


@pytest.mark.parametrize("change", ["id", "truth", "score"])
def test_other_examples_are_not_compared(change):
    one, other = rows([1, 0, 1]), rows([1, 0, 1])
    if change == "score":
        other["loss"] = other.pop("correct")
    else:
        other[change] = [*other[change][:-1], "other"]
    with pytest.raises(UserError, match="the two were not scored on the same examples"):
        compare_rows(one, other)


def test_rows_are_written_and_read_back(tmp_path):
    columns = {"id": ["a,b", 'c"', "d\udcff"], "truth": ["x", "y", "x"], "pred": ["x"] * 3, "correct": [1, 0, 1]}
    kept = write_rows(tmp_path, "my test", columns, "correct", {"light": ["dark", "dark", "light"]}, ["--bs", 4])
    assert kept["rows"]["mean"] == pytest.approx(2 / 3)
    assert kept["command"]["argv"] == ["--bs", "4"]
    assert kept["rows"]["file"] == rows_file("my test") == "eval_rows_my_test.csv"
    found = read_rows(tmp_path / "eval_rows_my_test.csv")
    assert found["id"] == columns["id"]
    assert found["slice.light"] == ["dark", "dark", "light"]
    with open(tmp_path / "eval_rows_my_test.csv", "a") as file:
        file.write("torn,")
    with pytest.raises(UserError, match="wanted whole rows"):
        read_rows(tmp_path / "eval_rows_my_test.csv")
