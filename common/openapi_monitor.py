"""The paths of common.monitor_pages, as common.openapi describes them.

about = told("/feedback")       # summary, bodies by media type, further errors; None for a path of others
schemas = schemas()             # by name, for the components
"""

from __future__ import annotations

from common.feedback import MOST_NUMBER, MOST_VALUE, RESULTS
from common.json_schema import TEXT, WHOLE, as_json, fields, list_of, ref


def told(path: str) -> dict | None:
    """As openapi wants it."""
    counts = fields(dict.fromkeys(RESULTS, WHOLE))
    worker = fields({"pid": WHOLE, "alarms": list_of(ref("schemas", "Alarm")), "history": {"type": "array"}})
    return {
        "/alerts": {
            "summary": "Alarms and their states, the latest comparison with the reference, what labels say.",
            "content": as_json(fields({"firing": list_of(TEXT), "workers": list_of(worker)})),
        },
        "/dashboard": {
            "summary": "A page that shows how the server and its model are doing.",
            "content": {"text/html": {"schema": TEXT}},
        },
        "/dashboard/data": {
            "summary": "What that page shows.",
            "content": as_json(fields({"name": TEXT, "model_id": TEXT, "workers": list_of(worker)})),
        },
        "/feedback": {
            "summary": "What turned out to be true of an answer, by its req_id; what cannot be joined is counted.",
            "content": as_json(counts),
            "errors": (415, 422),
            "body": {
                "application/json": {
                    "schema": ref("schemas", "Feedback"),
                    "examples": {"list": {"value": {"items": [{"req_id": "none-1", "label": "mug"}]}}},
                }
            },
            "wants_body": True,
        },
    }.get(path)


def schemas() -> dict:
    """By name."""
    value = {"type": "number", "minimum": -MOST_VALUE, "maximum": MOST_VALUE}
    keys = {
        "req_id": {**TEXT, "description": "of the answer"},
        "item": {
            "type": "integer",
            "minimum": 0,
            "maximum": MOST_NUMBER,
            "description": "its place in a list; default 0",
        },
    }
    label = {
        "anyOf": [TEXT, {"type": "integer", "minimum": 0, "maximum": MOST_NUMBER}],
        "description": "name or number",
    }
    number = {"anyOf": [value, list_of(value, minItems=1)], "description": "what came, one number a step"}
    one = {
        "oneOf": [
            {"type": "object", "additionalProperties": False, "required": ["req_id", key], "properties": properties}
            for key, properties in (("label", {**keys, "label": label}), ("value", {**keys, "value": number}))
        ]
    }
    many = {"type": "object", "additionalProperties": False, "required": ["items"]}
    many["properties"] = {"items": list_of(ref("schemas", "Truth"), minItems=1)}
    state = fields({"alarm": TEXT, "state": {"enum": ["ok", "pending", "firing", "resolved"]}, "severity": TEXT})
    return {"Truth": one, "Feedback": {"anyOf": [ref("schemas", "Truth"), many]}, "Alarm": state}
