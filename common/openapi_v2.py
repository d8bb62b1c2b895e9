"""The paths of the Open Inference Protocol, as common.openapi describes them.

    about = told(server, "/v2/models/vision/infer")     # summary, bodies by media type, further errors
    schemas = schemas(server)                           # by name, for the components

Reads the route and the model's answer to its example.
"""

from __future__ import annotations

from common.json_schema import FLAG, TEXT, as_json, fields, list_of, one_of, or_null, ref
from common.oip_v2 import HEAD_LENGTH, REFUSED, OpenInference
from common.tensors import NUMBERS

EXAMPLE_CHARS = 4000  # a longer one would bury the document
SIZES = list_of({"type": "integer", "minimum": 1})
# no parameter of its own: OpenAPI cannot say that a header comes with one media type only
RAW = f"JSON, then the binary tensors; the header {HEAD_LENGTH} says how many bytes are JSON."
BINARY = {"application/octet-stream": {"schema": {"description": RAW}}}


def told(server, path: str) -> dict:
    """Summary, content of a 200, and where there are any: body, further errors."""
    part = path.rstrip("/").rpartition("/")[2]
    errors = {"errors": (404,)} if "/versions/" in path else {}  # it may be replaced at any time
    if path.rstrip("/") == "/v2":
        server_metadata = fields({"name": TEXT, "version": TEXT, "extensions": list_of(TEXT)})
        return {"summary": "What this server is.", "content": as_json(server_metadata)}
    if part == "live":
        return {"summary": "The process runs.", "content": as_json(fields({"live": FLAG}))}
    if part == "ready":
        ready = fields({"ready": FLAG}, name=TEXT)
        return {"summary": "200 if predictions are answered now, else 503.", "content": as_json(ready), **errors}
    if part == "infer":
        return {
            "summary": "Predictions for a tensor of items, items first; a bad one fails the request.",
            "content": as_json(ref("schemas", "InferResponse")) | BINARY,
            "body": {"application/json": {"schema": ref("schemas", "InferRequest"), **_example(server)}} | BINARY,
            **errors,
        }
    return {
        "summary": "Names, types and shapes of the model's inputs and outputs; -1 is any size.",
        "content": as_json(ref("schemas", "ModelMetadata")),
        **errors,
    }


def schemas(server) -> dict:
    """By name."""
    protocol = OpenInference(server.route, server.slot.example_answer)
    tensor = fields({"name": TEXT, "datatype": TEXT, "shape": list_of({"type": "integer"})})
    output = fields(tensor["properties"], parameters={"type": "object"}, data={"type": "array"})
    return {
        "ModelMetadata": fields(
            {
                "name": one_of(server.route.name),
                "versions": list_of(TEXT),
                "platform": TEXT,
                "inputs": list_of(tensor),
                "outputs": list_of(tensor),
            }
        ),
        "InferRequest": _request(protocol),
        "InferResponse": fields(
            {"model_name": TEXT, "model_version": TEXT, "outputs": list_of(output)},
            id=TEXT,
            parameters=fields({"lat_ms": {"type": "number"}, "req_id": TEXT}),
        ),
    }


def _example(server) -> dict:
    """The model's own example as a tensor, where it is short enough to be read."""
    protocol, model = OpenInference(server.route, {}), server.slot.predictor
    if model is None or len(str(model.example)) > EXAMPLE_CHARS:
        return {}
    shape, rows = [1], [model.example]
    while isinstance(rows[0], list):
        rows = rows[0]
        shape.append(len(rows))
    tensor = {"name": server.route.key, "datatype": protocol.datatype, "shape": shape, "data": [model.example]}
    return {"example": {"inputs": [tensor]}}


def _request(protocol: OpenInference) -> dict:
    known, kind = (["BYTES"], "string") if protocol.datatype == "BYTES" else (list(NUMBERS), "number")
    rank = {"minItems": protocol.rank, "maxItems": protocol.rank + (protocol.datatype == "BYTES")}
    tensor = fields(
        {
            "name": one_of(protocol.route.key),
            "datatype": one_of(*known),
            "shape": {**SIZES, **rank},
            "data": {**list_of({"type": [kind, "array"]}, minItems=1), "description": "the elements, flat or nested"},
        },
        parameters=or_null(_parameters(binary_data_size={"type": "null"})),
    )
    wanted = {"parameters": or_null(_parameters(binary_data=or_null(FLAG)))}
    names = one_of(*protocol.outputs) if protocol.outputs else TEXT
    return {
        "description": "In JSON. In binary, a tensor has the parameter binary_data_size, in bytes, in place of data.",
        **fields(
            {"inputs": list_of(tensor, minItems=1, maxItems=1)},
            id=or_null(TEXT),
            parameters=or_null(_parameters(binary_data_output=or_null(FLAG))),
            outputs=or_null(list_of(fields({"name": names}, **wanted))),
        ),
    }


def _parameters(**known: dict) -> dict:
    return fields({}, **known, **dict.fromkeys(REFUSED, False))
