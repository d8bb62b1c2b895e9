"""One item of a request → numbers: what was sent is checked, and refused in words.

    past = read_item({"values": [21.5, 21.9], "times": ["2024-01-01 00:00", "2024-01-01 01:00"]}, assets)

An item is a list of numbers, oldest first (a list of rows where the model has several columns), or an object with
"values" or "series" ({column: numbers}), and maybe "covariates" ({column: numbers}), "times", "series_id" and
"observed": rows that came after the values, to be scored. null stands for a missing number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from common.cli import UserError
from project_ts_forecast.stamps import Step, parse_times, to_utc

NUMBERS = {"type": "array", "items": {"type": "number"}, "description": "oldest first, one step apart", "minItems": 1}
COLUMNS = {"type": "object", "additionalProperties": {"type": "array"}, "description": "numbers, by column"}
PAST = {  # JSON schema of an item that is an object
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "values": {"type": "array", "description": "numbers, or rows of numbers for several columns; null: missing"},
        "series": COLUMNS,
        "covariates": COLUMNS,
        "times": {"type": "array", "items": {"type": ["string", "number"]}, "description": "one stamp for each row"},
        "series_id": {"type": "string", "description": "whose scale is meant, where the model knows several series"},
        "observed": {"type": "array", "description": "rows that came after the values, to be scored as anomalies"},
    },
    "anyOf": [{"required": ["values"]}, {"required": ["series"]}],
}
KEYS = tuple(PAST["properties"])


class ValuesError(ValueError):
    """Values that no forecast can be made from; the text is for whoever sent them."""


class Past(NamedTuple):
    """What an item holds: values (n, C) with NaN for missing, times (n,) in µs or None, observed (m, C) or None."""

    values: np.ndarray
    times: np.ndarray | None
    series_id: str | None
    observed: np.ndarray | None


def read_item(item: object, assets: dict) -> Past:
    """Check and convert; assets: a checkpoint's. Raises ValuesError."""
    item = item if isinstance(item, dict) else {"values": item}
    if unknown := [key for key in item if key not in KEYS]:
        raise ValuesError(f'unknown key "{unknown[0][:40]}"; wanted {", ".join(KEYS)}')
    if ("values" in item) == ("series" in item):
        raise ValuesError('wanted either "values" or "series"')
    key = "values" if "values" in item else "series"
    values = _table(item[key], key, item.get("covariates"), assets)
    series_id = item.get("series_id")
    if series_id is not None and not isinstance(series_id, str):
        raise ValuesError('"series_id": wanted a string')
    observed = item.get("observed")
    if observed is not None:
        observed = _table(observed, "observed", None, {**assets, "covariate_cols": []})
    return Past(values, _times(item.get("times"), len(values), assets), series_id, observed)


def _table(held: object, key: str, covariates: object, assets: dict) -> np.ndarray:
    """(n, C) float64, the columns in the model's order."""
    names, extra = assets["value_cols"], assets["covariate_cols"]
    wanted = ", ".join(names + extra)
    if not isinstance(covariates, (dict, type(None))) or set(covariates or ()) - set(extra):
        raise ValuesError(f'"covariates": wanted {{column: numbers}} with {", ".join(extra) or "nothing"}')
    if isinstance(held, dict):
        columns = held
    elif len(names) == 1 and (covariates or not extra):
        columns = {names[0]: held}
    else:
        width = len(names) + (0 if covariates else len(extra))
        columns = dict(zip(names + extra, _columns(held, width, key, wanted), strict=False))
    columns = {**columns, **(covariates or {})}
    if set(columns) != {*names, *extra}:
        raise ValuesError(f'"{key}": found the columns {", ".join(map(str, columns))[:80]}; wanted {wanted}')
    numbers = [_numbers(columns[name], name) for name in names + extra]
    if len({len(column) for column in numbers}) > 1:
        found = ", ".join(str(len(column)) for column in numbers)
        raise ValuesError(f'"{key}": the columns {wanted} have {found} numbers; wanted equally many')
    return np.stack(numbers, 1)


def _columns(rows: object, width: int, key: str, names: str) -> list[tuple]:
    if not isinstance(rows, list) or not rows or not all(isinstance(r, list) and len(r) == width for r in rows):
        raise ValuesError(f'"{key}": wanted rows of {width} numbers ({names}), oldest first')
    return [*zip(*rows, strict=True)]


def _numbers(values: object, name: str) -> np.ndarray:
    """(n,) float64 from a list of numbers and nulls."""
    if not isinstance(values, (list, tuple)) or not values:
        raise ValuesError(f"{name}: wanted a list of numbers, oldest first")
    if not set(map(type, values)) <= {int, float}:
        for i, value in enumerate(values):
            if value is not None and type(value) not in (int, float):
                found = str(value)[:30]
                raise ValuesError(f"{name}: number {i + 1} is {found!r}; wanted a number, or null where it is missing")
    numbers = np.array([math.nan if value is None else value for value in values], np.float64)
    if np.isinf(numbers).any():
        raise ValuesError(f"{name}: number {int(np.isinf(numbers).argmax()) + 1} is infinite")
    return numbers


def _times(times: object, rows: int, assets: dict) -> np.ndarray | None:
    """(n,) µs, checked to be one step apart; None where the model has no use for them."""
    step = Step(*assets["step"])
    if times is None or step.kind == "rows":
        if assets["calendar"]:
            raise ValuesError('this model uses the calendar; send "times", one stamp for each row')
        return None
    plain = isinstance(times, list) and all(type(time) in (str, int, float) and time != "" for time in times)
    if not plain or len(times) != rows:
        raise ValuesError(f'"times": wanted {rows} stamps, one for each row')
    try:
        known = parse_times([str(time) for time in times], assets["time_format"] or None)[0]
    except UserError as error:
        raise ValuesError(f'"times": {error}') from error
    known = to_utc(known, assets["tz"]) if assets["tz"] else known
    if np.abs(np.diff(step.index(known, int(known[0]))) - 1).max(initial=0) > 0.5:
        raise ValuesError(
            f'"times": wanted stamps one step of {step} apart, oldest first; send null for the values of missing rows'
        )
    return known
