"""curl -s localhost:8080/openapi.json

What the server offers, as OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0):

    reply = json_reply(document(server))

Reads `server.endpoints`, the flags, the tokens and the model's answer to its example, so it is always of the model that
is served now; while that is loading, it says what is known by then.
"""

from __future__ import annotations

import re

from common import openapi_monitor, openapi_v2, rollout_pages
from common.endpoints import Endpoint, Reply, json_reply
from common.http_wire import Request
from common.json_schema import FLAG, TEXT, WHOLE, as_json, fields, list_of, ref, values_like
from common.model_slot import model_version

MS = {"type": "number", "minimum": 0}
ADDED = {  # what the server adds to every answer of the model
    "lat_ms": {**MS, "description": "from the whole body to the answer, in ms"},
    "p95": {**MS, "description": "95 % of the latest answers took at most this, in ms"},
    "alert": {**list_of(TEXT), "description": "names of the alarms that are firing"},
    "req_id": {**TEXT, "description": "the X-Request-ID of the request, or one made by the server"},
    "model_id": {**TEXT, "description": "which weights answered"},
}
VALUE = {
    "description": "Any JSON; integers have 64 bits at most.",
    "anyOf": [
        {"type": ["string", "boolean", "null"]},
        {"type": "number", "minimum": -(2**63), "maximum": 2**63 - 1},
        list_of(ref("schemas", "Value")),
        {"type": "object", "additionalProperties": ref("schemas", "Value")},
    ],
}
ERRORS = {
    400: "What was sent is not one clear request, or its body is not of the wanted shape.",
    401: "The token is missing or wrong.",
    403: "Admin routes are off: the server was started without a token for them.",
    404: "Nothing is at this path.",
    405: "The path wants another method.",
    408: "The request did not arrive in time.",
    409: "Not now: a reload is under way, or the model is still loading.",
    413: "The body is too long, or holds too many items.",
    414: "The path is too long.",
    415: "The body is not JSON, or it is compressed.",
    417: "An Expect header other than 100-continue.",
    422: "The input was understood and cannot be used; the words say why.",
    429: "The queue is full: try again after Retry-After seconds.",
    431: "The headers are too long or too many.",
    500: "The model failed on this input.",
    501: "A Transfer-Encoding other than chunked.",
    503: "No answers now: the model is still loading, the server is stopping, or it has too many connections.",
    504: "No answer within the time limit.",
    505: "Neither HTTP/1.0 nor HTTP/1.1.",
}
ANY_PATH = (400, 408, 413, 414, 417, 431, 501, 503, 505)  # may come before the path is looked at
PREDICTS = (415, 422, 429, 500, 504)
HEADERS = {
    401: {"WWW-Authenticate": {"required": True, "schema": TEXT}},
    405: {"Allow": {"required": True, "schema": TEXT}},
    429: {"Retry-After": {"required": True, "schema": WHOLE, "description": "seconds"}},
    503: {"Retry-After": {"schema": WHOLE, "description": "seconds"}},
}
TOKEN_OF = {"api": "apiToken", "admin": "adminToken"}


def described(server, request: Request, body: bytes) -> Reply:
    """GET /openapi.json."""
    return json_reply(document(server))


def document(server) -> dict:
    """The OpenAPI document of what `server` offers now."""
    model, route, limits = server.slot.predictor, server.route, server.limits
    tokens = {TOKEN_OF[guard]: {"type": "http", "scheme": "bearer"} for guard in server.tokens}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{route.name}: model server",
            "version": model_version(model) if model else "loading",
            "description": 'Every error is {"error": words}: 404 at a path that is not listed here, 405 for a method '
            f"that a path does not have. Bodies up to {limits.body_bytes} bytes, heads up to {limits.head_bytes} bytes "
            f"and {limits.headers} headers, {server.args.queue} items in one request.",
        },
        "paths": {path: _path(server, path, endpoint) for path, endpoint in server.endpoints.items()},
        "components": {
            "schemas": _schemas(server) | openapi_monitor.schemas() | openapi_v2.schemas(server),
            "parameters": _parameters(server),
            "responses": {f"Error{status}": _error(status) for status in ERRORS},
            **({"securitySchemes": tokens} if tokens else {}),
        },
    }


def _path(server, path: str, endpoint: Endpoint) -> dict:
    shared = [ref("parameters", name) for name in ("RequestId", "TraceParent")]
    told = _told(server).get(path) or openapi_monitor.told(path) or rollout_pages.told(path)
    told = told or openapi_v2.told(server, path)
    return {
        "parameters": shared,
        **{method.lower(): _operation(server, path, endpoint, method, told) for method in endpoint.methods},
    }


def _operation(server, path: str, endpoint: Endpoint, method: str, told: dict) -> dict:
    good = {"description": "Done.", "headers": {"X-Request-ID": {"required": True, "schema": TEXT}}}
    if method != "HEAD":
        good["content"] = told["content"]
    off = endpoint.guard == "admin" and "admin" not in server.tokens
    statuses = {*ANY_PATH, *(PREDICTS if endpoint.predicts else ()), *told.get("errors", ())}
    statuses |= {401} if endpoint.guard in server.tokens else set()
    statuses |= {403} if off else set()
    found = {
        "operationId": re.sub(r"\W", "_", f"{method.lower()}{path}"),
        "summary": told["summary"],
        "responses": {
            **({} if off else {"200": good}),
            **{str(status): ref("responses", f"Error{status}") for status in sorted(statuses)},
        },
    }
    if endpoint.guard in server.tokens:
        found["security"] = [{TOKEN_OF[endpoint.guard]: []}]
    if endpoint.predicts:
        found["parameters"] = [ref("parameters", "Timeout")]
    if "body" in told:
        found["requestBody"] = {"required": endpoint.predicts or "wants_body" in told, "content": told["body"]}
    return found


def _told(server) -> dict[str, dict]:
    """By path, what `server.endpoints` does not say: summary, bodies by media type, further errors."""
    either = {"anyOf": [ref("schemas", "Answer"), ref("schemas", "Answers")]}
    reloaded = fields({"status": {"const": "reloaded"}, "model_id": TEXT, "was": TEXT}, workers=WHOLE)
    health = {"status": {"const": "ok"}, "ready": FLAG, "model_id": {"type": ["string", "null"]}, "queue": WHOLE}
    ready = fields({"status": {"const": "ready"}, "model_id": TEXT})
    replace = "Load, check and serve another model; the old one answers until then, and goes on if that fails."
    return {
        "/": {"summary": "A page to try the model in a browser.", "content": {"text/html": {"schema": TEXT}}},
        "/openapi.json": {"summary": "This document.", "content": as_json(fields({"openapi": TEXT}))},
        "/health": {"summary": "The state of the server.", "content": as_json(fields(health, log_lines_lost=WHOLE))},
        "/live": {"summary": "The process runs.", "content": as_json(fields({"status": {"const": "live"}}))},
        "/ready": {"summary": "200 if predictions are answered now, else 503.", "content": as_json(ready)},
        "/metrics": {
            "summary": "Metrics in Prometheus's text format 0.0.4.",
            "content": {"text/plain": {"schema": TEXT}},
        },
        "/admin/reload": {
            "summary": replace,
            "content": as_json(reloaded),
            "errors": (409, 415, 422),
            "body": as_json(ref("schemas", "Reload")),
        },
        server.route.path: {
            "summary": "Predictions for one item, or for a list of items, where a bad one harms no other.",
            "content": as_json(either),
            "body": {"application/json": {"schema": _request(server.route), **_example(server)}},
        },
        **{
            route.path: {
                "summary": "The same model, asked in another way.",
                "content": as_json(fields(ADDED)),
                "body": {"application/json": {"schema": route.whole, "example": route.whole["examples"][0]}},
            }
            for route in server.route.beside
        },
    }


def _request(route) -> dict:
    """Of the body of a prediction."""
    plain = ref("schemas", "Request")
    return {"anyOf": [plain, ref("schemas", "Whole")]} if route.whole else plain


def _example(server) -> dict:
    model, route = server.slot.predictor, server.route
    if model is None or len(str(model.example)) > openapi_v2.EXAMPLE_CHARS:
        return {}
    one = {route.key: model.example}
    return {"examples": {"one": {"value": one}, "list": {"value": {route.list_key: [model.example] * 2}}}}


def _schemas(server) -> dict:
    """By name; `Prediction` is what the model answers, as far as its example shows."""
    route, example = server.route, server.slot.example_answer
    prediction = {**values_like(example), "examples": [example]} if example else {"type": "object"}
    either = {"anyOf": [ref("schemas", "Prediction"), ref("schemas", "Error")]}
    items = list_of(
        {"anyOf": [ref("schemas", "Item"), ref("schemas", "Value")]}, maxItems=server.args.queue, minItems=1
    )
    items["description"] = "An item that cannot be used gets an error of its own, in its place."
    keys = dict.fromkeys([route.key, route.list_key, "items"])
    bodies = [
        {
            "type": "object",
            "required": [key],
            "additionalProperties": ref("schemas", "Value"),
            "properties": {**dict.fromkeys(keys, False), key: ref("schemas", "Item") if key == route.key else items},
        }
        for key in keys
    ]
    return {
        "Error": fields({"error": TEXT}),
        "Item": route.schema,
        "Value": VALUE,
        "Request": {"description": "Exactly one of the keys.", "oneOf": bodies},
        **({"Whole": route.whole} if route.whole else {}),
        "Prediction": prediction,
        "Answer": {"allOf": [ref("schemas", "Prediction"), fields(ADDED)]},
        "Answers": fields({"items": list_of(either, minItems=1), **ADDED}),
        "Reload": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "ckpt": {**TEXT, "description": "a file on the server; default: the one that is served"},
                "sha256": {**TEXT, "pattern": "^[0-9a-fA-F]{64}$", "description": "of that file"},
            },
        },
    }


def _parameters(server) -> dict:
    limit = f"time for the answer, in ms; at most {server.args.timeout_ms}, which is also the default"
    headers = {
        "RequestId": ("X-Request-ID", TEXT, "comes back in the answer and in the request log, without odd characters"),
        "TraceParent": ("traceparent", TEXT, "W3C Trace Context; one that is not well-formed is passed over"),
        "Timeout": ("X-Timeout-Ms", {"type": "integer", "minimum": 1, "maximum": 999_999_999}, limit),
    }
    return {
        key: {"name": name, "in": "header", "schema": schema, "description": words}
        for key, (name, schema, words) in headers.items()
    }


def _error(status: int) -> dict:
    return {
        "description": ERRORS[status],
        **({"headers": HEADERS[status]} if status in HEADERS else {}),
        "content": {"application/json": {"schema": ref("schemas", "Error")}},
    }
