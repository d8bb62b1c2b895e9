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

from common.alarms import AlarmManager
from common.cli import UserError
from common.feedback import RESULTS
from common.monitor import SHORT
from common.policy import make_alarms
from common.reference import thresholds
from common.window_checks import judge

LEVELS = ("lat_p95", "queue_p95", "error_share")  # that the lines of a log can tell; no labels come to it


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
    """
    reference, alarms = ckpt["reference"], AlarmManager()
    if not reference.get("features"):
        raise UserError("--ckpt: it holds no reference to compare with; train the model again")
    levels = {name: about for name, about in policy["levels"].items() if name in (*LEVELS, "accuracy_drop")}
    for alarm in make_alarms({**policy, "levels": levels, "slo": {}}, thresholds(reference, policy)):
        alarms.add(alarm)
    logged = any(line.get("event") == "features" and line.get("model_id") == model_id for line in read_log(paths))
    windows, statuses, others, unreadable = [], Counter(), Counter(), 0
    values, checks = {}, {name: [] for name in LEVELS if name in alarms}
    for line in read_log(paths):
        if not isinstance(line.get("ts"), str) or "model_id" not in line:
            unreadable += line.get("event") != "alarm"
        elif line["model_id"] != model_id:
            others[str(line["model_id"])] += 1
        elif "event" not in line:
            statuses[str(line.get("status"))] += 1
            _levels(checks, line, alarms)
            _extend(values, {} if logged else _answers(line, ckpt))
        elif line["event"] == "features" and logged:
            _extend(values, line["features"])
        n = max(map(len, values.values()), default=0)
        if n >= policy["window"]:
            result = judge(reference, values, None, policy, alarms, _seconds(line))
            windows.append({"until": line["ts"], "n": n, **result})
            values = {}
    return {
        "model_id": model_id,
        "requests": statuses.total(),
        "statuses": dict(statuses),
        "lines_of_other_models": dict(others),
        "lines_unreadable": unreadable,
        "features_from": "the monitor's lines" if logged else "the answers",
        "window": policy["window"],
        "left_over": max(map(len, values.values()), default=0),
        "windows": windows,
        "alarms": alarms.states(),
        "events": list(alarms.history),
    }


def _seconds(line: dict) -> float:
    return datetime.fromisoformat(line["ts"]).timestamp()


def _extend(values: dict[str, list], more: dict[str, list]) -> None:
    for name, column in more.items():
        values.setdefault(name, []).extend(math.nan if value is None else value for value in column)


def _answers(line: dict, ckpt: dict) -> dict[str, list]:
    """Class and confidence of a line, as far as the checkpoint's reference has them."""
    pred, prob = (value if isinstance(value, list) else [value] for value in (line.get("pred"), line.get("prob")))
    classes, known = ckpt["assets"].get("classes"), ckpt["reference"]["features"]
    found = {name: [p for p in prob if isinstance(p, float)] for name in ("prob", "conf") if name in known}
    if classes and "label" in known:
        found["label"] = [classes[p] for p in pred if isinstance(p, int) and 0 <= p < len(classes)]
    return found


def _levels(checks: dict[str, list], line: dict, alarms: AlarmManager) -> None:
    """One more answer for the alarms of latency and errors, checked each SHORT answers as the server does."""
    status = line.get("status")
    told = {
        "lat_p95": line.get("lat_ms"),
        "queue_p95": line.get("queue_ms"),
        "error_share": status == 429 or status >= 500,
    }
    for name, values in checks.items():
        if told[name] is not None and (status == 200 or name == "error_share"):
            values.append(told[name])
        if len(values) == SHORT:
            value = sum(values) / SHORT if name == "error_share" else sorted(values)[round(0.95 * (SHORT - 1))]
            alarms.run({name: (value, SHORT)}, _seconds(line))
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
    about = {"name": f"{ckpt['project']}, {found['requests']} requests", "at": time.time(), "unavailable": ""}
    return {**about, **told, "model_id": found["model_id"], "workers": [worker]}


def drifted(found: dict) -> dict[str, int]:
    """{feature: in how many windows it had drifted}, the most first."""
    counts = Counter(
        result["feature"] for window in found["windows"] for result in window["drift"] if result["drifted"]
    )
    return dict(counts.most_common())
