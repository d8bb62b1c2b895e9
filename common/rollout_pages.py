"""GET /rollout, POST /rollout/promote, hold, resume and rollback: only where the server has a candidate.

found += endpoints(server)
about = told("/rollout")        # for common.openapi; None for a path of others
"""

from __future__ import annotations

from functools import partial

from common.alarms import Alarm
from common.batcher import Job
from common.endpoints import GET, POST, Endpoint, json_reply, later
from common.http_connection import Connection
from common.json_schema import TEXT, WHOLE, as_json, fields
from common.rollout import VERBS, shown_share

ORDERS = {
    "promote": "The candidate becomes the stable model now.",
    "hold": "Stay at this stage; the guardrails go on.",
    "resume": "Go on with the stages.",
    "rollback": "The candidate gets no more requests.",
}
ALARM = Alarm(
    "canary_rollback", 1.0, min_samples=1, consecutive=1, severity="critical", about="The candidate was taken out.",
    runbook="The model before answers all requests. GET /rollout says why; mend the candidate, register it, start with "
    "the new one as --canary. A reload that brings another model ends the alarm.",
)  # fmt: skip


def endpoints(server) -> list[Endpoint]:
    """The routes."""
    if not server.args.canary:
        return []
    orders = [
        Endpoint(POST, f"/rollout/{verb}", accept=partial(_ask, server, "order", verb), guard="admin") for verb in VERBS
    ]
    return [Endpoint(GET, "/rollout", accept=partial(_ask, server, "rollout", None)), *orders]


def gauges(server) -> dict:
    """For /metrics."""
    if not server.args.canary:
        return {}
    split = server.canary.split
    return {
        "rollout_share": {"": shown_share(split["status"], split["share"])},
        "rollout_status": {f'status="{split["status"]}"': 1},
    }


def _ask(server, what: str, value: object, connection: Connection, body: bytes) -> Job:
    return later(server, connection, server.canary.ask(what, value), json_reply)


def told(path: str) -> dict | None:
    """As common.openapi wants it."""
    if not path.startswith("/rollout"):
        return None
    about = {
        "status": TEXT,
        "stage": WHOLE,
        "percent": {"type": "number"},
        "why": TEXT,
        "guardrails": {"type": "object"},
    }
    verb = path.removeprefix("/rollout").strip("/")
    summary = ORDERS.get(verb, "How far the candidate is, what it waits for, and the numbers behind it.")
    return {"summary": summary, "content": as_json(fields(about)), **({"errors": (409, 415)} if verb else {})}
