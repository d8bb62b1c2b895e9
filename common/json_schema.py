"""JSON schemas (https://json-schema.org, 2020-12) in few words, for the document of common.openapi.

values_like({"pred": 3, "label": "mug"})    # an object with an integer and a string, both required
fields({"error": TEXT})                     # an object with this key and maybe others
"""

from __future__ import annotations

TEXT, FLAG, WHOLE = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def values_like(value: object) -> dict:
    """The schema of values such as this one; what None may stand for is left open."""
    if isinstance(value, dict):
        return fields({key: values_like(held) for key, held in value.items()})
    if isinstance(value, (list, tuple)):
        kinds = [values_like(item) for item in value]
        same = kinds and all(kind == kinds[0] for kind in kinds)
        return {"type": "array", **({"items": kinds[0]} if same else {})}
    return {"type": NAMES[type(value)]} if type(value) in NAMES else {}


def fields(required: dict, **optional: dict) -> dict:
    """An object's; there may be further fields."""
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def one_of(*values: object) -> dict:
    """Exactly these values."""
    return {"const": values[0]} if len(values) == 1 else {"enum": list(values)}


def list_of(items: dict, **limits: int) -> dict:
    """limits: minItems, maxItems."""
    return {"type": "array", "items": items, **limits}


def or_null(schema: dict) -> dict:
    """The same, or null."""
    return {**schema, "type": [schema["type"], "null"]}


def as_json(schema: dict) -> dict:
    """The content of a request or response that is JSON."""
    return {"application/json": {"schema": schema}}


def ref(kind: str, name: str) -> dict:
    """Of an OpenAPI document's components."""
    return {"$ref": f"#/components/{kind}/{name}"}
