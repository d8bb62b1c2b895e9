"""Runs, compared in a table: filtered, sorted, and the best one found.

    runs = kept(runs, ["val_acc>0.8", "project=vision"])
    print(table(runs, ["val_acc", "test.accuracy", "config.lr"]))

Values go by the names that `common.run_record.flat` gives them.
"""

from __future__ import annotations

import math
import operator
import re
from typing import Any

from common.cli import UserError
from common.run_record import flat, lower_is_better

COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
ALWAYS = ["dir", "project", "started", "seconds", "seed", "data_version"]


def number_or_text(text: str) -> Any:
    """What a value on the command line means: a number where it reads as one."""
    try:
        return float(text)
    except ValueError:
        return text


def kept(runs: list[dict], conditions: list[str]) -> list[dict]:
    """The runs that meet every condition, `NAME OP VALUE` with OP one of = != >= <= > <; UserError for other words."""
    for condition in conditions:
        match = re.fullmatch(r"([^=!<>]+?)\s*(!=|>=|<=|=|>|<)\s*(.+)", condition)
        if not match:
            raise UserError(f"--where {condition}: wanted NAME=VALUE, or one of != >= <= > < in place of =")
        name, sign, wanted = match[1], COMPARE[match[2]], number_or_text(match[3])
        runs = [run for run in runs if _meets(flat(run).get(name), sign, wanted)]
    return runs


def _meets(found: Any, sign: Any, wanted: Any) -> bool:
    if found is None or isinstance(wanted, float) != (isinstance(found, (int, float)) and not isinstance(found, bool)):
        found, wanted = str(found), str(wanted)  # one of them is no number
        return sign in (operator.eq, operator.ne) and sign(found, wanted)
    return sign(found, wanted)


def in_order(runs: list[dict], name: str, highest_first: bool = False) -> list[dict]:
    """Sorted by a value; runs without it come last."""
    has = [run for run in runs if flat(run).get(name) is not None]
    rest = [run for run in runs if flat(run).get(name) is None]
    return sorted(has, key=lambda run: _sortable(flat(run)[name]), reverse=highest_first) + rest


def _sortable(value: Any) -> tuple:
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))


def best(runs: list[dict], metric: str) -> dict:
    """The run with the best value of a metric; UserError where no run has it."""
    scored = [run for run in runs if isinstance(value := flat(run).get(metric), (int, float)) and not math.isnan(value)]
    if not scored:
        known = sorted({key for run in runs for key, value in flat(run).items() if isinstance(value, float)})
        raise UserError(f"--metric {metric}: none of {len(runs)} runs has it; they have {', '.join(known) or 'none'}")
    return (min if lower_is_better(metric) else max)(scored, key=lambda run: flat(run)[metric])


def columns(runs: list[dict]) -> list[str]:
    """What a table shows unless told: where and when, the best epoch's scores, and accuracy or error of evaluations."""
    scores = list(dict.fromkeys(key for run in runs for key in run["best"]))
    judged = dict.fromkeys(
        key for run in runs for key in flat(run) if re.fullmatch(r"[^.]+\.(accuracy|macro_f1|mae|mase)", key)
    )
    return [*ALWAYS, *scores, *(key for key in judged if key.split(".")[0] in {n for run in runs for n in run["eval"]})]


def table(runs: list[dict], names: list[str]) -> str:
    """Aligned columns, a line a run."""
    rows = [names, *([_cell(name, flat(run).get(name)) for name in names] for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "seconds":
        return f"{value:.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)[:12] if name in ("data_version", "git.commit") else str(value)
