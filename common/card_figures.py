"""Figures that cards show: single scores, slices with their intervals, short lists.

    headline(metrics["eval"]["test"])           # {"accuracy": 0.93, "macro_f1": 0.92, ...}
    slice_table(read_rows(path))                # [["class=mug", 40, 0.85, [0.73, 0.95]], ...], the weakest first

Reads what common.generate_model_card collects; writes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from common.paired import interval
from common.run_record import scalars

MIN_SLICE = 10  # examples; fewer say nothing


def headline(scores: dict[str, Any]) -> dict[str, float]:
    """The single numbers of an evaluation, some counts among them: those at the top, or where there are none, below."""
    top = scalars({key: value for key, value in scores.items() if not isinstance(value, dict)})
    if not {"accuracy", "mse", "mae"} & top.keys():
        top |= scalars({key: value for key, value in scores.items() if key in ("scaled", "original", "skill")})
    return top


def slice_table(rows: dict[str, list[str]]) -> list[list[Any]]:
    """[slice, examples, mean score, its 95 % interval], the weakest first; examples of one group are drawn together."""
    score = "correct" if "correct" in rows else "loss"
    values = np.array(rows[score], dtype=float)
    groups = np.unique(rows.get("group", rows["id"]), return_inverse=True)[1]
    members = defaultdict(list)
    for column in (key for key in rows if key.startswith("slice.")):
        for i, value in enumerate(rows[column]):
            members[f"{column.removeprefix('slice.')}={value}"].append(i)
    table = [
        [name, len(kept), float(values[kept].mean()), list(interval(values[kept], groups[kept], 0.025, seed=0))]
        for name, kept in members.items()
        if len(kept) >= MIN_SLICE
    ]
    return sorted(table, key=lambda row: row[2] if score == "correct" else -row[2])


def lists(tree: dict, above: str = "") -> dict[str, list]:
    """Short lists of numbers, such as accuracies by severity."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= lists(value, f"{above}{key}.") if key != "reliability" else {}
        elif isinstance(value, list) and 0 < len(value) <= 8 and all(isinstance(v, (int, float)) for v in value):
            found[above + key] = value
    return found
