"""The checks of a running server on its log: yesterday's traffic, window by window.

    found = replay(["requests.jsonl"], load_ckpt("best.pt"), model_id, read_policy("monitoring.json"))
    html = report(page_data(found, ckpt, policy))

Reads the lines that common/request_log.py and common/monitor.py write. `python -m common.monitor_core` is the command.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial

from common.alarms import AlarmManager
from common.burn import BUCKET_S, BurnRate
from common.cli import UserError
from common.feedback import RESULTS
from common.monitor import SHORT, at_fault
from common.policy import make_alarms
from common.reference import thresholds
from common.window_checks import judge

LEVELS = ("lat_p95", "queue_p95", "error_share")  # that the lines of a log can tell; no labels come to it
CHECKED = (*LEVELS, "accuracy_drop")
OWN = ("answer", "features")  # lines of the model that is looked at


def read_log(paths: Iterable[str]) -> Iterator[dict]:
    """The lines of one log after the other, oldest file first; a torn or foreign line comes as {}.

    Raises UserError for a file that cannot be read.
    """
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        held = json.loads(line)
                    except ValueError:
                        held = {}
                    yield held if isinstance(held, dict) else {}
        except OSError as error:
            raise UserError(f"--log {path}: cannot be read ({error.strerror or error})") from error


def replay(paths: list[str], ckpt: dict, model_id: str, policy: dict) -> dict:
    """{"requests", "statuses", "windows", "events", ...} of the lines that `model_id` wrote; see the end.

    Features are those that the server's monitor logged; where it logged none, class and confidence of the answers.
    Times are those of the log.
    """
    reference = ckpt["reference"]
    if not reference.get("features"):
        raise UserError("--ckpt: it holds no reference to compare with; train the model again")
    lines = partial(_lines, paths, model_id, reference["features"])
    counts, logged, at = _counted(lines())
    alarms = _add_alarms(AlarmManager(lambda: at), policy, reference)
    budgets = {name: BurnRate(about["objective"]) for name, about in policy["slo"].items()}
    windows, measured, values = [], set(), {}
    checks = {name: [] for name in LEVELS if name in alarms}
    for kind, seconds, line in lines():
        if kind not in OWN:
            continue
        if seconds // BUCKET_S != at // BUCKET_S:
            _check_budgets(budgets, alarms, at)
        at = seconds
        if kind == "answer":
            _spend(budgets, line, policy["slo"], at)
            _levels(checks, line, alarms, at)
        _extend(values, line.get("features", {}) if logged else _answers(line, ckpt), reference["features"])
        measured |= values.keys()
        n = max(map(len, values.values()), default=0)
        if n >= policy["window"]:
            windows.append({"until": line["ts"], "n": n, **judge(reference, values, None, policy, alarms, at)})
            values = {}
    _check_budgets(budgets, alarms, at)
    watched = [*thresholds(reference, policy), *(name for name in policy["levels"] if name not in CHECKED)]
    return {
        "model_id": model_id,
        **counts,
        "not_checked": [name for name in watched if name not in measured],
        "features_from": "the monitor's lines" if logged else "the answers",
        "window": policy["window"],
        "left_over": max(map(len, values.values()), default=0),
        "windows": windows,
        "alarms": alarms.states(),
        "events": list(alarms.history),
    }


def _counted(lines: Iterable[tuple[str, float, dict]]) -> tuple[dict, bool, float]:
    """Counts of the lines, whether there are features of this model, and its earliest line's time."""
    statuses, others, unreadable, logged, first = Counter(), Counter(), 0, False, 0.0
    for kind, at, line in lines:
        unreadable += kind == "unreadable"
        logged |= kind == "features"
        first = first or (at if kind in OWN else 0.0)
        if kind == "answer":
            statuses[str(line["status"])] += 1
        elif kind == "other":
            others[line["model_id"]] += 1
    counts = {"requests": statuses.total(), "statuses": dict(statuses), "lines_of_other_models": dict(others)}
    return {**counts, "lines_unreadable": unreadable}, logged, first


def _add_alarms(alarms: AlarmManager, policy: dict, reference: dict) -> AlarmManager:
    levels = {name: about for name, about in policy["levels"].items() if name in CHECKED}
    for alarm in make_alarms({**policy, "levels": levels}, thresholds(reference, policy)):
        alarms.add(alarm)
    return alarms


def _lines(paths: list[str], model_id: str, known: dict) -> Iterator[tuple[str, float, dict]]:
    """(kind, Unix seconds, line): "answer" or "features" of this model, "other" of another, "unreadable", or ""."""
    for line in read_log(paths):
        at, event, model = _seconds(line.get("ts")), line.get("event"), line.get("model_id")
        if event == "alarm":
            yield "", at, line
        elif math.isnan(at) or not isinstance(model, str):
            yield "unreadable", at, line
        elif model != model_id:
            yield "other", at, line
        elif event is None:
            numbers = all(_number(line.get(name)) for name in ("lat_ms", "queue_ms"))
            yield "answer" if type(line.get("status")) is int and numbers else "unreadable", at, line
        elif event == "features":
            yield "features" if _whole(line.get("features"), known) else "unreadable", at, line
        else:
            yield "", at, line


def _seconds(ts: object) -> float:
    """Unix seconds of a line's time; NaN where it is none."""
    try:
        return datetime.fromisoformat(ts).timestamp()
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _number(value: object) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _whole(features: object, known: dict) -> bool:
    """Whether they are those of the reference: columns of one length, of texts for classes and numbers for the rest."""
    if not isinstance(features, dict) or not features.keys() >= known.keys():
        return False
    columns = [features[name] for name in known]
    return all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns) and all(
        isinstance(value, str) if "counts" in known[name] else _number(value)
        for name in known
        for value in features[name]
    )


def _extend(values: dict[str, list], more: dict[str, list], known: dict) -> None:
    for name in known.keys() & more.keys():
        values.setdefault(name, []).extend(math.nan if value is None else value for value in more[name])


def _answers(line: dict, ckpt: dict) -> dict[str, list]:
    """Class and confidence of a line, as far as the checkpoint's reference has them."""
    pred, prob = (value if isinstance(value, list) else [value] for value in (line.get("pred"), line.get("prob")))
    classes, known = ckpt["assets"].get("classes"), ckpt["reference"]["features"]
    found = {name: [p for p in prob if isinstance(p, float)] for name in ("prob", "conf") if name in known}
    if classes and "label" in known:
        found["label"] = [classes[p] for p in pred if isinstance(p, int) and 0 <= p < len(classes)]
    return found


def _spend(budgets: dict[str, BurnRate], line: dict, slo: dict, at: float) -> None:
    """One more answer for the error budgets."""
    if "errors" in budgets:
        budgets["errors"].add(at_fault(line["status"]), now=at)
    if "latency" in budgets and line["status"] == 200 and line.get("lat_ms") is not None:
        budgets["latency"].add(line["lat_ms"] > slo["latency"]["ms"], now=at)


def _check_budgets(budgets: dict[str, BurnRate], alarms: AlarmManager, at: float) -> None:
    alarms.run({f"slo_{name}": budget.value(at) for name, budget in budgets.items()}, at)


def _levels(checks: dict[str, list], line: dict, alarms: AlarmManager, at: float) -> None:
    """One more answer for the alarms of latency and errors, checked each SHORT answers as the server does."""
    status = line["status"]
    told = {"lat_p95": line.get("lat_ms"), "queue_p95": line.get("queue_ms"), "error_share": at_fault(status)}
    for name, values in checks.items():
        if told[name] is not None and (status == 200 or name == "error_share"):
            values.append(told[name])
        if len(values) == SHORT:
            value = sum(values) / SHORT if name == "error_share" else sorted(values)[round(0.95 * (SHORT - 1))]
            alarms.run({name: (value, SHORT)}, at)
            values.clear()


def page_data(found: dict, ckpt: dict, policy: dict) -> dict:
    """What common/dashboard.html shows, of the last window and of all events."""
    last = found["windows"][-1] if found["windows"] else {"drift": [], "mix": {}, "expected": None}
    watched = list(thresholds(ckpt["reference"], policy))
    drift = {"window": found["window"], "seen": found["left_over"], "windows": len(found["windows"])}
    drift |= {"watched": watched, "alpha": policy["alpha"], "results": last["drift"]}
    worker = {
        "pid": 0,
        "model_id": found["model_id"],
        "alarms": found["alarms"],
        "history": found["events"],
        "drift": drift,
        "mix": last["mix"],
        "expected": last["expected"],
        "feedback": dict.fromkeys(RESULTS, 0),
        "samples": [],
        "totals": dict.fromkeys(("answered", "invalid", "refused", "failed"), 0),
        "batch": {"rows": 0, "batches": 0},
        "queue": {"rows": 0, "places": 0},
        "sinks": {},
    }
    provenance = ckpt["provenance"]
    told = {"version": provenance.get("utc", ""), "data_version": provenance.get("data_version", "")}
    unseen = f" (not checked: {', '.join(found['not_checked'])})" if found["not_checked"] else ""
    about = {"name": f"{ckpt['project']}, {found['requests']} requests{unseen}", "at": time.time(), "unavailable": ""}
    return {**about, **told, "model_id": found["model_id"], "workers": [worker]}


def drifted(found: dict) -> dict[str, int]:
    """{feature: in how many windows it had drifted}, the most first."""
    counts = Counter(
        result["feature"] for window in found["windows"] for result in window["drift"] if result["drifted"]
    )
    return dict(counts.most_common())
