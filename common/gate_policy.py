"""The policy of a gate: a file of bounds, such as project_vision_cls/gate.toml.

    policy = read_policy("project_vision_cls/gate.toml")
    policy["quality"]                           # {"accuracy": ">= 0.75"}
    broken("accuracy", 0.7, ">= 0.75")          # "accuracy is 0.7, wanted >= 0.75"

Python 3.10 has no TOML reader, so this reads the part of TOML that such a file needs, and refuses the rest: comments,
[section], and on one line each KEY = VALUE with a value that JSON has too (text in double quotes, number, true, false,
or a list of these). The model card's facts are read by it too.
"""

from __future__ import annotations

import json
import math
import operator
import re
from pathlib import Path
from typing import Any

from common.cli import UserError

NAMES = ("test_set", "test_version")
BOUNDS = ("quality", "calibration", "robustness", "coverage", "out_of_scope", "leaks", "data")
OPTIONS = {
    "baseline": {"level": 0.95, "margin": 0.0, "slice_margin": 0.0, "min_slice": 30},
    "budget": {"p99_ms": math.inf, "size_mb": math.inf, "requests": 200},
    "card": {"complete": True, "robustness": True},  # robustness: a card without it is not complete
    "provenance": {"clean": True, "data_present": True},
}
LINE = re.compile(r'(?P<key>[A-Za-z0-9_-]+|"[^"\\]+")\s*=\s*(?P<value>.+)')
COMPARE = {">=": operator.ge, "<=": operator.le}


def read_toml(path: str | Path) -> dict[str, Any]:
    """{key: value} with {section: {key: value}}; UserError, with the line, for what is none of the above."""
    found: dict[str, Any] = {}
    section = found
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # splitlines ends lines at U+0085 too
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        text = _without_comment(line).strip()
        header = re.fullmatch(r"\[([A-Za-z0-9_-]+)\]", text)
        entry = LINE.fullmatch(text)
        if not text:
            continue
        if header:
            if header[1] in found:
                raise UserError(f"{path}, line {number}: {header[1]} comes twice")
            section = found[header[1]] = {}
            continue
        try:
            key, value = entry["key"].strip('"'), json.loads(entry["value"], parse_constant=_refuse)
        except (TypeError, ValueError) as error:
            wanted = 'wanted [section] or KEY = VALUE with "text", a number, true, false or a list of these'
            raise UserError(f"{path}, line {number}: {line.strip()!r}: {wanted}, on one line") from error
        if key in section or value is None or isinstance(value, dict):
            raise UserError(f"{path}, line {number}: {key} comes twice, or its value is no text, number, flag or list")
        section[key] = value
    return found


def _without_comment(line: str) -> str:
    """`line` up to the first # outside of double quotes."""
    return re.match(r'(?:[^"#]|"(?:[^"\\]|\\.)*")*', line)[0] if "#" in line else line


def _refuse(word: str) -> None:
    raise ValueError(word)  # NaN and Infinity, which Python's JSON would take


def read_policy(path: str | Path) -> dict[str, Any]:
    """The policy with its defaults. UserError for an unknown key (a misspelt bound would never hold), or no quality."""
    held = read_toml(path)
    unknown = held.keys() - {*NAMES, *BOUNDS, *OPTIONS}
    if unknown:
        known = ", ".join([*NAMES, *BOUNDS, *OPTIONS])
        raise UserError(f"{path}: unknown {', '.join(sorted(unknown))}; wanted some of {known}")
    if not isinstance(held.get("test_version", ""), str):
        raise UserError(f'{path}: wanted test_version = "HEX", the start of data_version in metrics.json')
    if not isinstance(held.get("test_set"), str) or not held.get("quality"):
        raise UserError(f'{path}: wanted test_set = "NAME" (a part of metrics.json) and bounds under [quality]')
    for section in (name for name in BOUNDS if name in held):
        for key, bounds in held[section].items():
            for bound in _listed(bounds):
                _parsed(bound, f"{path}: [{section}] {key}")
    for section, options in OPTIONS.items():
        given = held.get(section, {})
        for key, value in given.items():
            kinds = (bool,) if isinstance(options.get(key), bool) else (int, float)
            if key not in options or not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise UserError(f"{path}: [{section}] {key} = {value!r}; wanted {', '.join(options)}, each of its kind")
        held[section] = {**options, **given}
    if not 0.5 <= held["baseline"]["level"] < 1 or held["baseline"]["min_slice"] < 1:
        raise UserError(f"{path}: [baseline] wanted level in 0.5 to 1 and min_slice of 1 or more")
    return held


def _listed(bounds: Any) -> list:
    return bounds if isinstance(bounds, list) else [bounds]


def _parsed(bound: Any, where: str) -> tuple[str, float]:
    match = re.fullmatch(r"(>=|<=)\s*(-?[0-9.]+(?:[eE]-?[0-9]+)?)", bound) if isinstance(bound, str) else None
    try:
        return match[1], float(match[2])
    except (TypeError, ValueError) as error:
        raise UserError(f'{where} is {bound!r}, wanted a bound such as ">= 0.9" or "<= 0.05"') from error


def broken(name: str, value: Any, bounds: Any) -> str:
    """Why `value` is not within its bounds, in words; empty where it is. A list counts by its length."""
    if isinstance(value, (list, dict)):
        value = len(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name} is {value!r}, wanted a number {' and '.join(_listed(bounds))}"
    for bound in _listed(bounds):
        sign, limit = _parsed(bound, name)
        if not COMPARE[sign](value, limit):  # NaN is within no bounds
            return f"{name} is {value:.6g}, wanted {bound}"
    return ""


def at(tree: Any, path: str) -> Any:
    """The value at a dotted path of nested dicts and lists; None where there is none."""
    for key in path.split("."):
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, list) and key.isdigit() and int(key) < len(tree):
            tree = tree[int(key)]
        else:
            return None
    return tree
