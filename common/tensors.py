"""Tensors as the Open Inference Protocol writes them, in JSON or in binary, and the answers of a model as tensors.

    items = from_json([[1, 2], [3, 4]], "FP32", [2, 2])         # or flat: [1, 2, 3, 4]
    items = from_binary(b"\\x01\\x00\\x00\\x00a", "BYTES", [1])     # [b"a"]
    datatype, shape, elements = to_tensor([0.25, 0.75])         # "FP64", [2], ...; "JSON" where it is no tensor
    data = to_binary(datatype, elements)

Binary data is little-endian and row-major without gaps; an element of BYTES is 4 bytes of length, then the bytes
(https://github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md). Reading raises HttpError
400 where the data are not what datatype and shape say, and takes memory in proportion to the data, not to the shape.
"""

from __future__ import annotations

import math

import numpy as np

from common.http_wire import HttpError

NUMBERS = {"FP64": "<f8", "FP32": "<f4", "FP16": "<f2", "INT64": "<i8", "INT32": "<i4", "INT16": "<i2", "INT8": "i1"}
NUMBERS |= {"UINT64": "<u8", "UINT32": "<u4", "UINT16": "<u2", "UINT8": "u1"}


def from_json(data: list, datatype: str, shape: list[int]) -> list:
    """Nested lists of floats, or a flat list of str for BYTES. `data` is flat or nested; sizes are 1 or more."""
    elements = _flat(data, shape)
    if datatype == "BYTES":
        if not all(isinstance(element, str) for element in elements):
            raise HttpError(400, '"data": wanted strings')
        return elements
    dtype = np.dtype(NUMBERS[datatype])
    whole = dtype.kind != "f"
    if not set(map(type, elements)) <= ({int} if whole else {int, float}):
        raise HttpError(400, f'"data": wanted {"integers" if whole else "numbers"}')
    if whole and not np.iinfo(dtype).min <= min(elements) <= max(elements) <= np.iinfo(dtype).max:
        raise HttpError(400, f'"data": an integer does not fit {datatype}')
    with np.errstate(over="ignore"):  # what is too large for the datatype becomes infinite, and is refused as that
        numbers = np.array(elements, dtype if whole else np.float64).astype(dtype)
    return _floats(numbers, datatype, shape)


def from_binary(data: bytes, datatype: str, shape: list[int]) -> list:
    """Nested lists of floats, or a flat list of bytes for BYTES; sizes are 1 or more."""
    if datatype == "BYTES":
        return _unpacked(data, math.prod(shape))
    dtype = np.dtype(NUMBERS[datatype])
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise HttpError(400, f"{len(data)} bytes of binary data, not as many as shape {shape} of {datatype} has")
    return _floats(np.frombuffer(data, dtype), datatype, shape)


def _flat(data: list, shape: list[int]) -> list:
    """The elements in row-major order."""
    if len(data) == math.prod(shape) and not isinstance(data[0], list):
        return data
    elements = [data]
    for size in shape:
        if any(not isinstance(row, list) or len(row) != size for row in elements):
            raise HttpError(400, f'"data": wanted the {math.prod(shape)} elements of shape {shape}, flat or nested')
        elements = [element for row in elements for element in row]
    return elements


def _floats(numbers: np.ndarray, datatype: str, shape: list[int]) -> list:
    if not np.isfinite(numbers).all():
        raise HttpError(400, f"the tensor holds a number that is not a finite {datatype}")
    return numbers.astype(np.float64).reshape(shape).tolist()


def _unpacked(data: bytes, count: int) -> list[bytes]:
    elements, at = [], 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            raise HttpError(400, f"element {len(elements)} of the tensor ends beyond the binary data")
        elements.append(data[at + 4 : end])
        at = end
    if len(elements) != count:
        raise HttpError(400, f"the binary data holds {len(elements)} elements, wanted {count} as in the shape")
    return elements


def to_tensor(values: list) -> tuple[str, list[int], list]:
    """(datatype, shape, elements in row-major order) of one field in several answers.

    INT64, FP64, BOOL and BYTES for plain values; FP64 for lists of numbers, nested or not, if all have the same sizes.
    Everything else has the datatype JSON, with the values themselves as elements.
    """
    shape, elements = [len(values)], values
    while elements and all(isinstance(v, (list, tuple)) for v in elements) and len(set(map(len, elements))) == 1:
        shape.append(len(elements[0]))
        elements = [element for row in elements for element in row]
    kinds = {_datatype(element) for element in elements}
    if len(shape) == 1 and len(kinds) == 1:
        return kinds.pop(), shape, elements
    if kinds <= {"INT64", "FP64"} and exact(elements):
        return "FP64", shape, [float(element) for element in elements]
    return "JSON", [len(values)], values


def exact(numbers: list) -> bool:
    """Whether each is the same as an FP64, which whole numbers beyond 2**53 may not be."""
    return all(float(number) == number for number in numbers)


def _datatype(value: object) -> str:
    if isinstance(value, bool):
        return "BOOL"
    if isinstance(value, int):
        return "INT64" if -(2**63) <= value < 2**63 else "JSON"
    return "FP64" if isinstance(value, float) else "BYTES" if isinstance(value, str) else "JSON"


def to_binary(datatype: str, elements: list) -> bytes:
    """The elements of a tensor as `to_tensor` gives them; those of BYTES are str."""
    if datatype != "BYTES":
        return np.array(elements, {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}[datatype]).tobytes()
    texts = [element.encode(errors="replace") for element in elements]  # half a surrogate pair has no UTF-8
    return b"".join(part for text in texts for part in (len(text).to_bytes(4, "little"), text))
