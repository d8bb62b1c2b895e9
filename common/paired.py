"""Whether one model is worse than another on the same examples, beyond chance.

    for found in compare_rows(candidate, incumbent):
        print(found["slice"], found["difference"], found["interval"], found["worse"])

Reads the rows of two evaluations (common.eval_rows). The difference is candidate minus incumbent, turned so that higher
is better. Its interval comes from a paired bootstrap: examples are drawn with replacement, both models' results with
them (Efron & Tibshirani 1993, section 16.4); those of one group are drawn together (cluster bootstrap, Davison &
Hinkley 1997, section 3.8). Slices share the chance of a false alarm among them (Bonferroni).

Of 2,000 pairs of equally good models (400 examples, 10 slices of 40, every fifth answer another), 1.9 % were called
worse overall and 0.4 % on a slice; the bootstrap alone would have been 2.3 % and 5.0 %.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from common.cli import UserError

DRAWS_IN_TAIL = 20  # bootstrap draws that lie beyond an end of the interval: fewer make it shaky
CHUNK = 1 << 22  # draws in memory at a time


def compare_rows(
    candidate: dict[str, list[str]],
    incumbent: dict[str, list[str]],
    level: float = 0.95,
    margin: float = 0.0,
    slice_margin: float = 0.0,
    min_slice: int = 30,
    seed: int = 0,
) -> list[dict]:
    """One entry for "all" and each slice of at least `min_slice` examples.

    {"slice", "examples", "candidate", "incumbent", "difference", "interval", "worse"}; `worse` is true where the whole
    interval lies below -margin (-slice_margin for slices), and the sign test agrees.
    Raises UserError where the examples are not the same.
    """
    score, d = differences(candidate, incumbent)
    groups = np.unique(candidate.get("group", candidate["id"]), return_inverse=True)[1]
    parts = {"all": np.arange(len(d))}
    for column in (name for name in candidate if name.startswith("slice.")):
        members = defaultdict(list)
        for i, value in enumerate(candidate[column]):
            members[value].append(i)
        for value, rows in sorted(members.items()):
            if len(rows) >= min_slice:
                parts[f"{column.removeprefix('slice.')}={value}"] = np.array(rows)
    found, means = [], [np.array(rows[score], dtype=float) for rows in (candidate, incumbent)]
    for number, (name, rows) in enumerate(parts.items()):
        tail = (1 - level) / 2 / (1 if name == "all" else len(parts) - 1)
        low, high = interval(d[rows], groups[rows], tail, seed + number)
        first, second = (float(values[rows].mean()) for values in means)
        entry = {"slice": name, "examples": len(rows), "candidate": first, "incumbent": second}
        entry |= {"difference": float(d[rows].mean()), "interval": [low, high]}
        below = high < -(margin if name == "all" else slice_margin)
        found.append(entry | {"worse": below and sign_test(d[rows], groups[rows]) <= tail})
    return found


def differences(candidate: dict[str, list[str]], incumbent: dict[str, list[str]]) -> tuple[str, np.ndarray]:
    """(score, (n,) candidate minus incumbent with higher better); UserError unless ids and truths are the same."""
    score = "correct" if "correct" in candidate else "loss"
    for column in ("id", "truth", score):
        here, there = candidate.get(column), incumbent.get(column)
        if (here is None) != (there is None) or (column != score and here != there and not _close(here, there)):
            raise UserError(f"the two were not scored on the same examples: {column} differs; evaluate both on one set")
    sign = 1 if score == "correct" else -1
    return score, sign * (np.array(candidate[score], dtype=float) - np.array(incumbent[score], dtype=float))


def sign_test(d: np.ndarray, groups: np.ndarray) -> float:
    """Chance of so few wins among wins and losses if both were as likely (McNemar's exact test, one-sided).

    d (n,): counted for right or wrong answers that stand alone, where the bootstrap of few examples is too sure; 0 for
    other scores, which leaves the decision to the bootstrap.
    """
    if not np.isin(d, (-1, 0, 1)).all() or len(np.unique(groups)) < len(groups):
        return 0.0
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    return sum(math.comb(wins + losses, k) for k in range(wins + 1)) / 2 ** (wins + losses)


def _close(here: list[str], there: list[str]) -> bool:
    """Numbers that went through two models' scaling and back."""
    try:
        return len(here) == len(there) and np.allclose(np.array(here, float), np.array(there, float), 1e-4, 1e-6)
    except ValueError:  # they are names
        return False


def interval(d: np.ndarray, groups: np.ndarray, tail: float, seed: int) -> tuple[float, float]:
    """Ends of the bootstrap distribution of the mean of d (n,), each with the share `tail` beyond it.

    groups (n,): examples with one number are drawn together.
    """
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, d), np.bincount(index)
    rng, draws = np.random.default_rng(seed), max(2000, math.ceil(DRAWS_IN_TAIL / tail))
    values, often = np.unique(sums, return_counts=True)
    if counts.max() == 1 and len(values) <= 16:  # right or wrong: how often each value is drawn says it all
        means = rng.multinomial(len(d), often / often.sum(), size=draws) @ values / len(d)
    else:
        rows = max(1, CHUNK // len(sums))
        parts = []
        for start in range(0, draws, rows):
            drawn = rng.integers(len(sums), size=(min(rows, draws - start), len(sums)))
            parts.append(sums[drawn].sum(1) / counts[drawn].sum(1))
        means = np.concatenate(parts)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
