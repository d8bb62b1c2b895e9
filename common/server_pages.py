"""What a model server offers beside predictions: a page, a description, health, metrics, another model.

    server.endpoints = endpoints(server)    # by path; anew for each model, whose version is part of some paths

`server` is common.server_microbatch's Server.
"""

from __future__ import annotations

from functools import partial

from common import monitor_pages, oip_v2, rollout_pages
from common.batcher import Job
from common.endpoints import GET, POST, RETRY, Endpoint, Reply, json_reply, later
from common.http_connection import Connection
from common.http_wire import HttpError, Request
from common.metrics import escaped, render
from common.model_slot import model_version
from common.openapi import described
from common.page import home
from common.predictions import PlainJson
from common.strict_json import load_json


def endpoints(server) -> dict[str, Endpoint]:
    """What there is, by path."""
    if server.link:  # the numbers of all workers, whichever is asked
        metrics = {"accept": partial(_all_metrics, server)}
    else:
        metrics = {"page": lambda request, body: _metrics_reply([snapshot(server)])}
    predicting = [
        Endpoint(POST, route.path, accept=partial(server.accept, PlainJson(route)), guard="api", predicts=True)
        for route in (server.route, *server.route.beside)
    ]
    found = [
        Endpoint(GET, "/", page=partial(home, server)),
        Endpoint(GET, "/openapi.json", page=partial(described, server)),
        Endpoint(GET, "/health", page=partial(_health, server)),
        Endpoint(GET, "/live", page=lambda request, body: json_reply({"status": "live"})),
        Endpoint(GET, "/ready", page=partial(_ready, server)),
        Endpoint(GET, "/metrics", **metrics),
        *monitor_pages.endpoints(server),
        *rollout_pages.endpoints(server),
        Endpoint(POST, "/admin/reload", accept=partial(_reload, server), guard="admin"),
        *predicting,
    ]
    return {endpoint.name: endpoint for endpoint in found} | oip_v2.endpoints(server)


def _health(server, request: Request, body: bytes) -> Reply:
    lost = {"log_lines_lost": server.request_log.lost} if server.request_log else {}
    model_id = server.slot.predictor.model_id if server.slot.predictor else None
    ready = not server.unavailable()
    return json_reply({"status": "ok", "ready": ready, "model_id": model_id, "queue": server.batcher.depth, **lost})


def _ready(server, request: Request, body: bytes) -> Reply:
    if why := server.unavailable():
        raise HttpError(503, why, RETRY)
    return json_reply({"status": "ready", "model_id": server.slot.predictor.model_id})


def snapshot(server) -> dict:
    """The metrics of this process, for `render`."""
    server.tally.flush()
    gauges = {
        "http_connections": {"": len(server.connections)},
        "queue_rows": {"": server.batcher.depth},
        "predictions_in_flight": {"": len(server.jobs)},
        "model_ready": {"": int(not server.unavailable())},
        **monitor_pages.gauges(server),
        **rollout_pages.gauges(server),
    }
    if model := server.slot.predictor:
        names = {"model_id": model.model_id, "name": server.route.name, "version": model_version(model)}
        gauges["model_info"] = {",".join(f'{key}="{escaped(value)}"' for key, value in names.items()): 1}
    if server.request_log:
        server.metrics.counts["request_log_lines_lost_total"][""] = server.request_log.lost
    server.metrics.counts.update(monitor_pages.counters(server))
    return server.metrics.snapshot(gauges, getattr(server.slot.predictor, "helpers", ()))


def _metrics_reply(snapshots: list[dict]) -> Reply:
    return Reply(200, render(snapshots).encode(), "text/plain; version=0.0.4; charset=utf-8")


def _all_metrics(server, connection: Connection, body: bytes) -> Job:
    return later(server, connection, server.link.ask("metrics", snapshot(server)), _metrics_reply)


def _reload(server, connection: Connection, body: bytes) -> Job:
    wanted = load_json(body) if body.strip() else {}
    if not isinstance(wanted, dict) or not all(
        key in ("ckpt", "sha256") and isinstance(value, str) for key, value in wanted.items()
    ):
        raise HttpError(400, 'wanted a JSON object with "ckpt" (a path on the server), "sha256", both or neither')
    done = server.link.ask("reload", wanted) if server.link else server.reload(wanted)
    return later(server, connection, done, lambda value: json_reply({"status": "reloaded", **value}))
