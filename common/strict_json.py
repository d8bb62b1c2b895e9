"""JSON from strangers: what two readers could take for two different things is refused.

    value = load_json(b'{"text": "hello"}')     # HttpError 400, in words, where it is not one clear value

Refused beside broken JSON (RFC 8259): bytes that are not UTF-8, NaN, Infinity, numbers beyond a double or 64 bits,
a key that appears twice, half a surrogate pair, nesting deeper than 32 levels.
"""

import json
import math
import re

from common.http_wire import HttpError

JSON_DEPTH = 32
NUMBER_CHARS = 400
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def load_json(data: bytes) -> object:
    """The value. Raises HttpError 400, in words."""
    try:
        text = data.decode()
        value = _decode_json(text)
        if "\\" in text and SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise HttpError(400, f"the body is not UTF-8 (byte {error.start})") from error
    except UnicodeEncodeError as error:
        raise HttpError(400, "a string holds half of a surrogate pair") from error
    except RecursionError as error:
        raise HttpError(400, f"nested deeper than {JSON_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise HttpError(400, f"the body is not JSON: {error.msg} at character {error.pos}") from error
    flat = isinstance(value, dict) and not any(isinstance(held, (dict, list)) for held in value.values())
    if not flat and text.count("[") + text.count("{") > JSON_DEPTH and _deeper_than(value, JSON_DEPTH):
        raise HttpError(400, f"nested deeper than {JSON_DEPTH} levels")
    return value


def _unique_keys(pairs: list) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise HttpError(400, f"key {twice[:80]!r} appears twice")
    return value


def _finite_float(text: str) -> float:
    if len(text) > NUMBER_CHARS or not math.isfinite(value := float(text)):
        raise HttpError(400, f"number {text[:30]} is too large or too long")
    return value


def _small_int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**63:
        raise HttpError(400, f"integer {text[:30]} needs more than 64 bits")
    return value


def _no_constant(name: str) -> None:
    raise HttpError(400, f"{name} is not JSON: wanted a finite number")


_decode_json = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_float=_finite_float, parse_int=_small_int, parse_constant=_no_constant
).decode


def _deeper_than(value: object, most: int) -> bool:
    layer = [value]
    for _ in range(most):
        children = (child for parent in layer for child in (parent.values() if isinstance(parent, dict) else parent))
        layer = [child for child in children if isinstance(child, (dict, list))]
    return bool(layer)
