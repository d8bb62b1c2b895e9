"""The Open Inference Protocol: requests mutated at random are read or refused."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient

from common.http_wire import HttpError
from common.oip_v2 import OpenInference
from tests.oip_v2 import (
    CUBES,
    EIGHT,
    PHOTO,
    SERIES,
    TEXT,
    binary,
    in_json,
    job_of,
    packed,
    strings,
    tensor,
    with_tensor,
)

TAIL = packed("größe".encode(), b"b")
GOOD_BODIES = [  # (protocol, JSON, binary)
    (TEXT, json.dumps({**in_json("text", ["a", "b"]), "id": "1", "outputs": [{"name": "pred"}]}).encode(), b""),
    (TEXT, json.dumps(binary("text", [2], "BYTES", TAIL)).encode(), TAIL),
    (PHOTO, json.dumps(binary("image", [2, 1], "BYTES", TAIL)).encode(), TAIL),
    (SERIES, json.dumps(with_tensor(data=[[1.5], [2]])).encode(), b""),
    (SERIES, json.dumps(binary("values", [2, 1], "FP64", EIGHT * 2)).encode(), EIGHT * 2),
    (CUBES, json.dumps(binary("values", [1, 2, 2], "FP32", EIGHT * 2)).encode(), EIGHT * 2),
]


def well_formed(protocol: OpenInference, items: list) -> bool:
    if protocol.datatype == "BYTES":
        kinds = (str, bytes) if protocol is PHOTO else (str,)
        return all(isinstance(item, kinds) for item in items)
    array = np.array(items or np.zeros([1] * protocol.rank))
    return array.dtype == np.float64 and array.ndim == protocol.rank and bool(np.isfinite(array).all())


def survives(protocol: OpenInference, body: bytes, length: str | None) -> None:
    status, items = 200, []
    try:
        items = protocol.read(job_of(body, length))
    except HttpError as error:
        status = error.status
    assert status == (200 if items else 400)
    assert well_formed(protocol, items)


@given(st.sampled_from(GOOD_BODIES), st.data())
def test_mutated_bytes_are_read_or_refused(good, data):
    protocol, head, tail = good
    body = bytearray(head + tail)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(body) - 1)))
        cut = data.draw(st.integers(0, 3))
        body[at : at + cut] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"-", b"0", b"9" * 19, b"[", b'"', b"e9"])
        )
    length = data.draw(st.sampled_from([None, str(len(head)), str(len(body)), str(len(body) - len(tail))]))
    survives(protocol, bytes(body), length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
FIELDS = ["name", "shape", "datatype", "data", "parameters"]


@given(
    st.sampled_from(GOOD_BODIES),
    st.dictionaries(st.sampled_from(FIELDS), JSON | st.lists(st.integers(-1, 3), max_size=3), max_size=2),
    st.dictionaries(st.sampled_from(["id", "outputs", "parameters", "inputs"]), JSON, max_size=1),
    st.binary(max_size=20),
)
def test_mutated_fields_are_read_or_refused(good, in_tensor, in_request, tail):
    protocol, head, good_tail = good
    request = json.loads(head)
    request["inputs"][0] |= in_tensor
    body = json.dumps(request | in_request).encode()
    survives(protocol, body + (tail or good_tail), str(len(body)))


@given(st.lists(st.text(max_size=5) | st.binary(max_size=5), min_size=1, max_size=5), st.booleans())
def test_strings_are_read_as_tritonclient_writes_them(values, column):
    array = strings(*values).reshape(-1, 1) if column else strings(*values)
    body, size = InferenceServerClient.generate_request_body([tensor("image", array)])
    wanted = [value.encode() if isinstance(value, str) else value for value in values]
    assert PHOTO.read(job_of(body, str(size))) == wanted
