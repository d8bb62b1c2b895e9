"""What a server shows of its monitoring: /alerts, /dashboard, its part of /metrics; and /feedback, which it takes.

    server.monitor = make_monitor(server)
    found += endpoints(server)

Where several workers share a port, each watches its own share of the traffic, and these pages show all of them.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections import deque
from functools import partial

from common.dashboard import dashboard
from common.endpoints import GET, POST, Endpoint, Reply, json_reply, later
from common.feedback import MOST_NUMBER, MOST_VALUE, RESULTS, outside
from common.http_connection import Connection
from common.http_wire import HttpError
from common.metrics import escaped
from common.model_slot import model_version
from common.monitor import Monitor
from common.policy import read_policy
from common.rollout import shown_share
from common.sinks import Sink, command, webhook
from common.strict_json import load_json

SAMPLE_S, SAMPLES = 5.0, 120  # the dashboard's curves: ten minutes
MOST_LABELS = 200  # of the class mix, the largest first


def make_monitor(server) -> Monitor:
    """By the flags --policy, --alert_p95_ms, --webhook and --alert_command."""
    args, policy = server.args, read_policy(server.args.policy)
    if args.alert_p95_ms:
        latency = policy["levels"].get("lat_p95", {})
        policy["levels"]["lat_p95"] = {**latency, "clear": None, "threshold": args.alert_p95_ms}
    labels = {"job": server.route.name, "instance": f"{socket.gethostname()}:{args.port}"}
    labels |= {"worker": str(os.getpid())} if server.link else {}
    sinks = [Sink("webhook", webhook(args.webhook, labels))] if args.webhook else []
    sinks += [Sink("command", command(shlex.split(args.alert_command)))] if args.alert_command else []
    put = server.request_log.put if server.request_log else lambda entry: None
    monitor = Monitor(policy, server.slot, put, sinks, prefix=f"{server.ids.start}-")
    server.samples = deque(maxlen=SAMPLES)
    monitor.each_second = partial(_sample, server, monitor)
    return monitor


def endpoints(server) -> list[Endpoint]:
    """The routes."""
    if server.link:
        alerts = {"accept": partial(_of_all, server, _alerts_reply)}
        data = {"accept": partial(_of_all, server, partial(_data_reply, server))}
        feedback = {"accept": partial(_feedback_to_all, server)}
    else:
        alerts = {"page": lambda request, body: _alerts_reply([view(server)])}
        data = {"page": lambda request, body: _data_reply(server, [view(server)])}
        feedback = {"page": lambda request, body: _feedback_reply(server, [joined(server, truths(body))])}
    return [
        Endpoint(GET, "/alerts", **alerts),
        Endpoint(GET, "/dashboard", page=dashboard),
        Endpoint(GET, "/dashboard/data", **data),
        Endpoint(POST, "/feedback", **feedback, guard="api"),
    ]


# -- one worker --


def _sample(server, monitor: Monitor) -> None:
    """Every SAMPLE_S seconds one point of the curves; called by the monitor's thread."""
    now, last = time.time(), server.samples[-1] if server.samples else None
    if last and now - last["at"] < SAMPLE_S:
        return
    totals = dict(monitor.totals)
    seconds = now - last["at"] if last else SAMPLE_S
    per_s = {kind: (n - (last["totals"][kind] if last else 0)) / seconds for kind, n in totals.items()}
    quiet = per_s["answered"] == 0
    quantiles = {f"p{q}": None if quiet else server.latencies.quantile(q / 100) for q in (50, 95, 99)}
    server.samples.append({"at": now, "totals": totals, "per_s": per_s, **quantiles, "queue": server.batcher.depth})


def view(server) -> dict:
    """What /alerts and the dashboard show of this process."""
    monitor, model = server.monitor, server.slot.predictor
    rows, buckets = server.metrics.histograms["batch_rows"].get("", [0.0, [0]])
    largest = sorted(monitor.mix.get("reference", {}), key=monitor.mix.get("reference", {}).get)[-MOST_LABELS:]
    return {
        "pid": os.getpid(),
        "model_id": model.model_id if model else "",
        "alarms": monitor.alarms.states(),
        "history": list(monitor.alarms.history),
        "drift": {
            "window": monitor.policy["window"],
            "seen": monitor.seen,
            "windows": monitor.windows,
            "watched": monitor.watched,
            "alpha": monitor.policy["alpha"],
            "results": monitor.drift,
        },
        "mix": {side: {name: counts.get(name, 0) for name in largest} for side, counts in monitor.mix.items()},
        "expected": monitor.expected,
        "feedback": monitor.feedback.state(),
        "samples": list(server.samples),
        "totals": dict(monitor.totals),
        "batch": {"rows": rows, "batches": sum(buckets)},
        "queue": {"rows": server.batcher.depth, "places": server.batcher.places},
        "sinks": {sink.name: dict(sink.counts) for sink in monitor.sinks},
    }


def gauges(server) -> dict[str, dict[str, float]]:
    """For /metrics."""
    monitor = server.monitor
    states, tests, expected = monitor.alarms.states(), monitor.drift, monitor.expected
    found: dict[str, dict[str, float]] = {
        "alarm_firing": {_label(alarm=state["alarm"]): int(state["state"] == "firing") for state in states},
        "alarm_state": {_label(alarm=s["alarm"], severity=s["severity"], state=s["state"]): 1 for s in states},
        "drift_effect": {_label(feature=t["feature"]): t["effect"] for t in tests if t["effect"] is not None},
        "drift_threshold": {_label(feature=t["feature"]): t["threshold"] for t in tests},
        "drift_p_value": {_label(feature=t["feature"]): t["adjusted"] for t in tests},
        "accuracy_expected": {"": expected["value"]} if expected else {},
    }
    labels = monitor.feedback.state()
    found["accuracy_labelled"] = {"": labels["accuracy"]["value"]} if "accuracy" in labels else {}
    return found


def counters(server) -> dict[str, dict[str, float]]:
    """For /metrics."""
    monitor = server.monitor
    sent = {_label(sink=sink.name, result=result): n for sink in monitor.sinks for result, n in sink.counts.items()}
    return {
        "drift_windows_total": {"": monitor.windows},
        "feedback_total": {_label(result=result): monitor.feedback.counts[result] for result in RESULTS},
        "alarm_deliveries_total": sent,
    }


def _label(**labels: str) -> str:
    return ",".join(f'{key}="{escaped(value)}"' for key, value in labels.items())


# -- all workers --


def _of_all(server, reply, connection: Connection, body: bytes):
    return later(server, connection, server.link.ask("gather", {"what": "view"}), reply)


def _alerts_reply(views: list[dict]) -> Reply:
    firing = sorted({alarm["alarm"] for view in views for alarm in view["alarms"] if alarm["state"] == "firing"})
    shown = ("pid", "model_id", "alarms", "history", "drift", "expected", "feedback", "sinks")
    return json_reply({"firing": firing, "workers": [{key: view[key] for key in shown} for view in views]})


def _data_reply(server, views: list[dict]) -> Reply:
    model = server.slot.predictor
    return json_reply(
        {
            "name": server.route.name,
            "at": time.time(),
            "unavailable": server.unavailable(),
            "model_id": model.model_id if model else "",
            "version": model_version(model) if model else "",
            "data_version": getattr(model, "data_version", "") if model else "",
            "canary": _canary(server),
            "workers": views,
        }
    )


def answer_worker(server, what: str, value: object) -> object:
    """What the supervisor gathers from each worker for the one that was asked."""
    return view(server) if what == "view" else joined(server, value, dry=what == "check")


def _canary(server) -> dict | None:
    """What anybody may know of a rollout under way; the salt that deals its requests is not among it."""
    if not server.args.canary:
        return None
    split = server.canary.split
    told = {key: split[key] for key in ("status", "why", "shadow")}
    return {**told, "share": shown_share(split["status"], split["share"])}


# -- feedback --


def truths(body: bytes) -> list[dict]:
    """The items of a /feedback body, one or {"items": [...]}. Raises HttpError 400 that says what is wrong."""
    held = load_json(body)
    items = held.get("items") if isinstance(held, dict) and set(held) == {"items"} else [held]
    if not isinstance(items, list) or not items:
        raise HttpError(400, '"items": wanted a list of one item or more')
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("req_id"), str):
            raise HttpError(400, 'wanted an object with "req_id" and "label" or "value"')
        if set(item) - {"req_id", "label", "value", "item"} or ("label" in item) == ("value" in item):
            raise HttpError(400, 'wanted "req_id", either "label" or "value", perhaps "item", and no other key')
        item["item"] = whole(item.get("item", 0))
        if item["item"] is None:
            raise HttpError(400, '"item": wanted the place in the list of the request, 0 or more')
        value = item.get("value", 0.0)
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(type(n) in (int, float) and abs(n) <= MOST_VALUE for n in numbers):
            raise HttpError(400, '"value": wanted a number or a list of numbers')
        if "label" in item and not isinstance(item["label"], str):
            item["label"] = whole(item["label"])
            if item["label"] is None:
                raise HttpError(400, '"label": wanted a class by name or by number')
    return items


def whole(value: object) -> int | None:
    """A whole number from 0 to MOST_NUMBER; 3.0 is 3, as JSON has only one kind of number. None for anything else."""
    good = type(value) in (int, float) and 0 <= value <= MOST_NUMBER and value == int(value)
    return int(value) if good else None


def joined(server, items: list[dict], dry: bool = False) -> dict:
    """How many of the items had each result. Raises HttpError 422, and has joined none then. dry: joins none."""
    if not dry:
        joined(server, items, dry=True)
    counts, model = dict.fromkeys(RESULTS, 0), server.slot.predictor
    for item in items:
        try:
            result = server.monitor.feedback.join(item, model, dry)
            counts[result] += 1
            if result == "joined" and not dry and not outside(item, model):
                server.canary.evidence.labelled(item)
        except ValueError as error:
            raise HttpError(422, str(error)) from error
    return counts


def _feedback_to_all(server, connection: Connection, body: bytes):
    items = truths(body)

    async def ask() -> list[dict]:
        await server.link.ask("gather", {"what": "check", "value": items})  # any worker may refuse, and none has joined
        return await server.link.ask("gather", {"what": "feedback", "value": items})

    return later(server, connection, ask(), partial(_feedback_reply, server))


def _feedback_reply(server, found: list[dict]) -> Reply:
    counts = best(found)
    server.monitor.feedback.count(counts)
    return json_reply(counts)


def best(found: list[dict]) -> dict:
    """Counts of one answer of several workers, of whom at most one knows each request."""
    total, counts = sum(found[0].values()), {}
    for result in RESULTS[:-1]:
        counts[result] = min(sum(one[result] for one in found), total - sum(counts.values()))
    return {**counts, "unknown": total - sum(counts.values())}
