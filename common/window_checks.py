"""What a window of answers says: its drift, the accuracy to expect, and the checks of the alarms that it concerns.

    found = judge(reference, {"prob": [...], "label": [...]}, embedding, policy, alarms)

Used by the server's monitor (common.monitor) and on yesterday's log (common.offline).
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import compress

import torch

from common.alarms import AlarmManager
from common.expected import expect
from common.reference import compare


def judge(
    reference: dict, values: dict[str, list], points: torch.Tensor | None, policy: dict, alarms: AlarmManager, now=None
) -> dict:
    """A window against the reference: {"drift", "expected", "mix"}, and a check of each alarm that it concerns.

    values: {feature: [...]}; points: its embedding. now: seconds on a steady clock.
    """
    drift, checks, mix = compare(reference, values, points, policy), {}, {}
    for result in drift:
        value = (result["effect"] if result["drifted"] else 0.0) if result["n"] else math.nan
        checks[f"drift_{result['feature']}"] = (value, result["n"], {"what": describe(result)})
    expected = expected_accuracy(reference, values)
    if expected and "accuracy_drop" in alarms:
        known = expected["value"] + expected["drop"]
        words = f"{known:.1%} on validation → {expected['value']:.1%} expected"
        checks["accuracy_drop"] = (expected["drop"], expected["n"], {"what": words})
    if counts := reference["features"].get("label", {}).get("counts"):
        mix = {"reference": counts, "now": dict(Counter(values.get("label", [])))}
    alarms.run(checks, now)
    return {"drift": drift, "expected": expected, "mix": mix}


def describe(result: dict) -> str:
    """A comparison in words."""
    if not result["n"]:
        return "not measured"
    about = f"{result['test']} {result['effect']:.3g} (from {result['threshold']:.3g} on), p {result['adjusted']:.2g}"
    if result["what"]:
        return f"{about}: {result['what']} {result['was']:.1%} → {result['now']:.1%}"
    return f"{about}: mean {result['was']:.4g} → {result['now']:.4g}" if result["was"] is not None else about


def expected_accuracy(reference: dict, values: dict[str, list]) -> dict | None:
    """{"value", "drop", "n"}: the accuracy to expect without labels, and how far below the reference's it is.

    As training learned it (common/expected.py); from an older checkpoint the mean confidence, which is the chance to be
    right as long as traffic looks as validation did (J. Kuberski, CBPE, NannyML 2022). Where answers say whether they
    are in scope, of those that are: both were learned from texts in scope, and say nothing of others. None for a model
    without confidences or without a known accuracy.
    """
    scope, learned = values.get("in_scope"), reference.get("expected")
    if scope:
        inside = [one == "yes" for one in scope]
        values = {feature: list(compress(column, inside)) for feature, column in values.items()}
    name = next((name for name in ("prob", "conf") if values.get(name)), None)
    known = reference.get("accuracy_accepted" if scope else "accuracy", reference.get("accuracy"))
    if name is None or known is None:
        return None
    able = learned and all(feature in values for feature in learned["features"])
    value = expect(learned, values) if able else math.fsum(values[name]) / len(values[name])
    return {"value": value, "drop": known - value, "n": len(values[name])}


def label_checks(state: dict, reference: dict) -> dict[str, tuple[float, int]]:
    """Checks of the alarms that want labels, as far as there are labels and the reference knows what to expect."""
    accuracy, error, coverage = (state.get(name) for name in ("accuracy", "error", "coverage"))
    known, checks = reference, {}
    if accuracy and known.get("accuracy") is not None:
        checks["accuracy_drop_labels"] = (known["accuracy"] - accuracy["value"], accuracy["n"])
    if error and known.get("error"):
        checks["error_ratio_labels"] = (error["value"] / known["error"], error["n"])
    if coverage and known.get("coverage") is not None:
        checks["coverage_drop_labels"] = (known["coverage"] - coverage["value"], coverage["n"])
    return checks
