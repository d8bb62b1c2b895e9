"""What is watched and when it is an alarm: one JSON file, such as project_vision_cls/monitoring.json.

    policy = read_policy("project_vision_cls/monitoring.json")
    alarms = make_alarms(policy, {"prob": 0.1})     # features with their thresholds: reference.thresholds()

    {"window": 500, "alpha": 0.001, "pause_s": 10,
     "drift": {"prob": {"effect": 0.1, "severity": "warning", "runbook": "Look at the latest photos."},
               "size": {"watch": false}},
     "levels": {"lat_p95": {"threshold": 250, "clear": 200}},
     "slo": {"errors": {"objective": 0.999}, "latency": {"objective": 0.99, "ms": 500}}}

Every key may be left out, and an unknown one is refused: a misspelt alarm would never ring.
"""

from __future__ import annotations

import json
from pathlib import Path

from common.alarms import Alarm
from common.cli import UserError
from common.reference import EFFECTS

TOP = {
    "window": (500, "requests in one comparison with the reference; windows do not overlap"),
    "alpha": (0.001, "chance of a false alarm of all features together in a window, before a row of two is asked for"),
    "pause_s": (10.0, "shortest time from the start of one window to that of the next, which bounds the cost"),
    "drift": ({}, "features"),
    "levels": ({}, "figures of the server and of the answers"),
    "slo": ({}, "objectives"),
}
RING = {"min_samples", "consecutive", "cooldown_sec", "severity", "runbook"}
DRIFT = {"watch", "test", "effect"} | RING
LEVEL = {"threshold", "direction", "clear"} | RING
SLO = {"errors": {"objective"} | RING, "latency": {"objective", "ms"} | RING}
LEVELS = {  # name: (what it is, n of a check, direction)
    "lat_p95": ("95 % of the latest 100 answers took at most so many ms", 100, ">="),
    "queue_p95": ("95 % of the latest 100 requests waited at most so many ms before the model took them", 100, ">="),
    "error_share": ("share of the latest 100 answers with status 429 or 5xx", 100, ">="),
    "accuracy_drop": ("accuracy expected without labels, how far below that of validation", 100, ">="),
    "accuracy_drop_labels": ("accuracy by the labels that came back, how far below that of validation", 100, ">="),
    "error_ratio_labels": ("mean absolute error by the values that came back, times that of validation", 100, ">="),
    "coverage_drop_labels": (
        "coverage of the intervals by the values that came back, how far below that of validation",
        100,
        ">=",
    ),
}

FEATURE = "how much {} differs from validation; 0 where that may be chance"
BURN = "{} use the error budget up; from 1 on it fires: 2 % of a month's budget in an hour, or 5 % in six hours"
BURNS = {"errors": "how fast 429 and 5xx", "latency": "how fast answers of more than {ms:g} ms"}


def read_policy(path: str | Path | None) -> dict:
    """The policy of a file, the defaults for None or "", or with "off" none at all.

    Raises UserError that names the key, what was found there and what is wanted.
    """
    if not path or path == "off":
        return {**checked({}, "the default policy"), "off": path == "off"}
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no policy can be read from it ({error})") from error
    return checked(held, str(path))


def checked(held: object, where: str) -> dict:
    """The policy with its defaults; UserError as `read_policy`."""
    _keys(held, set(TOP), where)
    policy = {"off": False, **{name: held.get(name, default) for name, (default, _) in TOP.items()}}
    for name, (low, high) in {"window": (50, 100_000), "alpha": (1e-9, 0.5), "pause_s": (0, 86_400)}.items():
        _number(policy[name], low, high, f"{where}: {name}")
    _keys(policy["drift"], None, f"{where}: drift")
    for name, about in policy["drift"].items():
        _keys(about, DRIFT, f"{where}: drift: {name}")
        if about.get("test", "ks") not in EFFECTS:
            raise UserError(f"{where}: drift: {name}: test is {about['test']!r}, wanted one of {', '.join(EFFECTS)}")
        if "effect" in about:
            _number(about["effect"], 0, 1e9, f"{where}: drift: {name}: effect")
    _keys(policy["levels"], set(LEVELS), f"{where}: levels")
    for name, about in policy["levels"].items():
        _keys(about, LEVEL, f"{where}: levels: {name}")
        if "threshold" not in about:
            raise UserError(f"{where}: levels: {name}: there is no threshold")
    _keys(policy["slo"], set(SLO), f"{where}: slo")
    for name, about in policy["slo"].items():
        _keys(about, SLO[name], f"{where}: slo: {name}")
        _number(about.get("objective"), 1e-6, 1 - 1e-9, f"{where}: slo: {name}: objective")
    if "latency" in policy["slo"]:
        _number(policy["slo"]["latency"].get("ms"), 0, 1e9, f"{where}: slo: latency: ms")
    make_alarms(policy, dict.fromkeys(policy["drift"], 0.1), where)
    return policy


def _keys(held: object, wanted: set[str] | None, where: str) -> None:
    if not isinstance(held, dict):
        raise UserError(f"{where}: found {type(held).__name__}, wanted an object")
    unknown = sorted(set(held) - wanted) if wanted is not None else []
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; wanted some of {', '.join(sorted(wanted))}")


def _number(value: object, low: float, high: float, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UserError(f"{where} is {value!r}, wanted a number from {low} to {high}")


def make_alarms(policy: dict, features: dict[str, float], where: str = "policy") -> list[Alarm]:
    """Those of the features (drift_NAME, at their thresholds), the levels, and the objectives (slo_NAME).

    Raises UserError.
    """
    alarms = []
    for name, threshold in features.items():
        # a check of it is 0 where the difference may be chance, else the effect
        ring = {
            "threshold": max(threshold, 1e-9),
            "consecutive": 2,
            "cooldown_sec": 3600,
            "min_samples": 1,
            "about": FEATURE.format(name),
        }
        alarms.append(_alarm(f"drift_{name}", ring | _only(policy["drift"].get(name, {})), f"{where}: drift: {name}"))
    for name, about in policy["levels"].items():
        ring = {"direction": LEVELS[name][2], "min_samples": LEVELS[name][1], "about": LEVELS[name][0], **about}
        alarms.append(_alarm(name, ring, f"{where}: levels: {name}"))
    for name, about in policy["slo"].items():
        told = BURN.format(BURNS[name].format(ms=about.get("ms", 0)))
        ring = {"threshold": 1.0, "consecutive": 1, "severity": "critical", "about": told} | _only(about)
        alarms.append(_alarm(f"slo_{name}", ring, f"{where}: slo: {name}"))
    return alarms


def _only(about: dict) -> dict:
    return {key: value for key, value in about.items() if key in RING}


def _alarm(name: str, about: dict, where: str) -> Alarm:
    for key in ("threshold", "min_samples", "consecutive", "cooldown_sec", "clear"):
        if about.get(key) is not None:
            _number(about[key], -1e12, 1e12, f"{where}: {key}")
    for key in ("severity", "runbook", "direction"):
        if not isinstance(about.get(key, ""), str):
            raise UserError(f"{where}: {key} is {about[key]!r}, wanted text")
    try:
        return Alarm(name, **about)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
