"""JSON schemas (https://json-schema.org, 2020-12) in few words, for the document of common.openapi and for requests.

values_like({"pred": 3, "label": "mug"})    # an object with an integer and a string, both required
fields({"error": TEXT})                     # an object with this key and maybe others
misfit(7, TEXT)                             # "found a whole number, wanted a string"
"""

from __future__ import annotations

TEXT, FLAG, WHOLE = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
NAMES = {bool: "boolean", int: "integer", float: "number", str: "string"}
TYPES = {**NAMES, dict: "object", list: "array", type(None): "null"}
WORDS = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "a string"}
WORDS |= {"object": "an object", "array": "a list", "null": "null"}


def values_like(value: object) -> dict:
    """The schema of values such as this one; what None may stand for is left open."""
    if isinstance(value, dict):
        return fields({key: values_like(held) for key, held in value.items()})
    if isinstance(value, (list, tuple)):
        kinds = [values_like(item) for item in value]
        same = kinds and all(kind == kinds[0] for kind in kinds)
        return {"type": "array", **({"items": kinds[0]} if same else {})}
    return {"type": NAMES[type(value)]} if type(value) in NAMES else {}


def misfit(value: object, schema: dict, name: str = "") -> str:
    """Where the JSON type of a value, or of a key's, is another than in its schema, in words; "" where it is not.

    name: of the value, for the words. What is in lists, and null in place of a key's value, is for whoever reads them.
    """
    kind, wanted = TYPES[type(value)], schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and kind not in wanted and not (kind == "integer" and "number" in wanted):
        words = f"found {WORDS[kind]}, wanted {' or '.join(map(WORDS.get, wanted))}"
        return f'"{name}": {words}' if name else words
    held = value if isinstance(value, dict) else {}
    for key, part in schema.get("properties", {}).items():
        if held.get(key) is not None and (words := misfit(held[key], part, key)):
            return words
    return ""


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
