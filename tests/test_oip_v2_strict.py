"""The Open Inference Protocol's strictness: what is read, and what is refused in words."""

import json

import numpy as np
import pytest

from common.http_wire import HttpError
from common.oip_v2 import OpenInference
from common.predictions import Route
from tests.oip_v2 import CUBES, EIGHT, PHOTO, SERIES, TEXT, binary, in_json, job_of, packed, read, with_tensor


def test_what_is_read():
    assert read(TEXT, in_json("text", ["a", "b"])) == ["a", "b"]
    assert read(TEXT, in_json("text", [["a"], ["b"]], [2, 1])) == read(TEXT, in_json("text", ["a", "b"], [2, 1]))
    tail = packed("é".encode(), b"")
    assert read(TEXT, binary("text", [2], "BYTES", tail), tail) == ["é", ""]
    assert read(PHOTO, binary("image", [1], "BYTES", packed(b"\xff\0")), packed(b"\xff\0")) == [b"\xff\0"]
    assert read(PHOTO, in_json("image", ["/w=="])) == ["/w=="]
    assert read(SERIES, with_tensor()) == read(SERIES, with_tensor(data=[[1], [2]])) == [[1.0], [2.0]]
    assert read(SERIES, with_tensor(datatype="FP32", data=[0.1, 2])) == [[float(np.float32(0.1))], [2.0]]
    assert read(SERIES, with_tensor(datatype="INT64", data=[2**62, -1])) == [[2.0**62], [-1.0]]
    assert read(SERIES, with_tensor(datatype="UINT64", data=[2**62, 1])) == [[2.0**62], [1.0]]
    cube = list(range(8))
    nested = np.array(cube).reshape(2, 2, 2).tolist()
    for data in (cube, nested):
        assert read(CUBES, in_json("values", data, [2, 2, 2], "INT8")) == nested
    tail = np.arange(8, dtype="<f4").tobytes()
    assert read(CUBES, binary("values", [2, 2, 2], "FP32", tail), tail) == nested


BAD_REQUESTS = [
    (b"", "not JSON"),
    (b"\xff", "UTF-8"),
    (b"[]", "JSON object"),
    (b'{"inputs": [], "inputs": []}', "twice"),
    (b'{"id": NaN}', "NaN"),
    ({}, '"inputs": wanted a list'),
    ({"inputs": {}}, '"inputs"'),
    ({"inputs": []}, '"values"'),
    ({"inputs": [7]}, '"values"'),
    ({"inputs": with_tensor()["inputs"] * 2}, "one tensor"),
    (with_tensor(name="other"), '"values"'),
    (with_tensor(name=...), '"values"'),
    (with_tensor(datatype=...), '"datatype"'),
    (with_tensor(datatype="BYTES"), "'BYTES', wanted FP64"),
    (with_tensor(datatype="BOOL"), "'BOOL'"),
    (with_tensor(datatype=64), '"datatype"'),
    (with_tensor(shape=...), '"shape"'),
    (with_tensor(shape="2"), '"shape"'),
    (with_tensor(shape=[2]), '"shape"'),
    (with_tensor(shape=[2, 1, 1]), '"shape"'),
    (with_tensor(shape=[-2, -1]), '"shape"'),
    (with_tensor(shape=[0, 1]), '"shape"'),
    (with_tensor(shape=[10**15, 0]), '"shape"'),
    (with_tensor(shape=[2.0, 1]), '"shape"'),
    (with_tensor(shape=[2, True]), '"shape"'),
    (with_tensor(shape=[2**62, 2**62]), "elements"),
    (with_tensor(shape=[2**64, 1]), "64 bits"),
    (with_tensor(shape=[1, 1]), "elements"),
    (with_tensor(shape=[3, 1]), "elements"),
    (with_tensor(data=[]), "elements"),
    (with_tensor(data=[[1], [2, 3]]), "elements"),
    (with_tensor(data=[[1], 2]), "elements"),
    (with_tensor(data=[1, [2]]), "numbers"),
    (with_tensor(data=[[[1]], [[2]]]), "numbers"),
    (with_tensor(data=[1, "2"]), "numbers"),
    (with_tensor(data=[1, True]), "numbers"),
    (with_tensor(data=[1, None]), "numbers"),
    (with_tensor(data=7), '"data"'),
    (with_tensor(data=...), '"data"'),
    (with_tensor(datatype="INT8", data=[1, 128]), "INT8"),
    (with_tensor(datatype="UINT8", data=[1, -1]), "UINT8"),
    (with_tensor(datatype="INT8", data=[1, 1.0]), "integers"),
    (with_tensor(datatype="FP32", data=[1, 1e39]), "finite FP32"),
    (with_tensor(datatype="FP16", data=[1, 70000]), "finite FP16"),
    (with_tensor(parameters=[]), '"parameters"'),
    (with_tensor(parameters={"binary_data_size": 0}), "either"),
    (with_tensor(data=..., parameters={"binary_data_size": 16}), "0 bytes follow"),
    (with_tensor(data=..., parameters={"shared_memory_region": "r"}), "shared_memory_region"),
    ({**with_tensor(), "id": 7}, '"id"'),
    ({**with_tensor(), "parameters": {"binary_data_output": 1}}, '"binary_data_output"'),
    ({**with_tensor(), "parameters": {"sequence_id": 1}}, "sequence_id"),
    ({**with_tensor(), "outputs": {}}, '"outputs"'),
    ({**with_tensor(), "outputs": ["pred"]}, '"outputs"'),
    ({**with_tensor(), "outputs": [{}]}, '"name"'),
    ({**with_tensor(), "outputs": [{"name": "other"}]}, "pred"),
    ({**with_tensor(), "outputs": [{"name": "pred"}] * 2}, "each once"),
    ({**with_tensor(), "outputs": [{"name": "pred", "parameters": {"binary_data": "yes"}}]}, '"binary_data"'),
    ({**with_tensor(), "outputs": [{"name": "pred", "parameters": {"classification": 3}}]}, "classification"),
]


@pytest.mark.parametrize(("body", "words"), BAD_REQUESTS)
def test_a_wrong_request_is_400_in_words(body, words):
    with pytest.raises(HttpError) as caught:
        read(SERIES, body)
    assert (caught.value.status, words in caught.value.message) == (400, True), caught.value.message


BAD_BINARY = [
    (SERIES, [1, 1], "FP64", EIGHT, {"binary_data_size": 7}, "8 bytes follow the JSON, wanted 7"),
    (SERIES, [1, 1], "FP64", EIGHT, {"binary_data_size": -8}, "wanted -8"),
    (SERIES, [1, 1], "FP64", EIGHT, {"binary_data_size": 8.0}, '"binary_data_size": wanted an integer'),
    (SERIES, [1, 1], "FP64", EIGHT, {"binary_data_size": True}, '"binary_data_size"'),
    (SERIES, [1, 1], "FP64", EIGHT, {}, "either"),
    (SERIES, [1, 2], "FP64", EIGHT, {"binary_data_size": 8}, "shape [1, 2]"),
    (SERIES, [1, 1], "FP32", EIGHT, {"binary_data_size": 8}, "FP32"),
    (SERIES, [2**62, 2**62], "FP64", EIGHT, {"binary_data_size": 8}, "shape"),
    (SERIES, [1, 1], "FP64", np.array([np.nan]).tobytes(), {"binary_data_size": 8}, "finite"),
    (SERIES, [1, 1], "FP64", np.array([-np.inf]).tobytes(), {"binary_data_size": 8}, "finite"),
    (SERIES, [1, 2], "FP32", np.array([1, np.nan], "<f4").tobytes(), {"binary_data_size": 8}, "finite"),
    (SERIES, [1, 2], "FP32", b"\1\0\x80\x7f" * 2, {"binary_data_size": 8}, "finite"),  # a signalling NaN
    (TEXT, [1], "BYTES", b"\5\0\0\0abcd", {"binary_data_size": 8}, "element 0 of the tensor ends beyond"),
    (TEXT, [1], "BYTES", b"\xff\xff\xff\xff", {"binary_data_size": 4}, "beyond"),
    (TEXT, [2], "BYTES", packed(b"a") + b"\0\0", {"binary_data_size": 7}, "element 1"),
    (TEXT, [2], "BYTES", packed(b"a"), {"binary_data_size": 5}, "1 elements, wanted 2"),
    (TEXT, [1], "BYTES", packed(b"a", b"b"), {"binary_data_size": 10}, "2 elements, wanted 1"),
    (TEXT, [2**62], "BYTES", packed(b"a"), {"binary_data_size": 5}, "1 elements"),
    (TEXT, [1], "BYTES", packed(b"\xff"), {"binary_data_size": 5}, "UTF-8"),
    (TEXT, [1, 2], "BYTES", packed(b"a", b"b"), {"binary_data_size": 10}, '"shape"'),
    (TEXT, [1, 1, 1], "BYTES", packed(b"a"), {"binary_data_size": 5}, '"shape"'),
    (TEXT, [], "BYTES", packed(b"a"), {"binary_data_size": 5}, '"shape"'),
    (TEXT, [1], "FP64", EIGHT, {"binary_data_size": 8}, "wanted BYTES"),
    (PHOTO, [1], "UINT8", EIGHT, {"binary_data_size": 8}, "wanted BYTES"),
]


@pytest.mark.parametrize(("protocol", "shape", "datatype", "tail", "parameters", "words"), BAD_BINARY)
def test_wrong_binary_data_is_400_in_words(protocol, shape, datatype, tail, parameters, words):
    body = binary(protocol.route.key, shape, datatype, tail, parameters=parameters)
    with pytest.raises(HttpError) as caught:
        read(protocol, body, tail)
    assert (caught.value.status, words in caught.value.message) == (400, True), caught.value.message


@pytest.mark.parametrize("length", ["", "-1", "1e1", "+5", "5, 5", "١", "9" * 5000, "1000", "0", "3"])
def test_the_length_of_the_json_is_checked(length):
    with pytest.raises(HttpError) as caught:
        SERIES.read(job_of(json.dumps(with_tensor()).encode(), length))
    assert caught.value.status == 400


def test_bytes_after_json_data_are_refused():
    with pytest.raises(HttpError, match="1 bytes follow the JSON, wanted 0"):
        read(SERIES, with_tensor(), b"x")


def test_strings_are_strings():
    for data in ([1], [None], [["a"]], ["a", ["b"]]):
        with pytest.raises(HttpError) as caught:
            read(TEXT, in_json("text", data, [len(data)]))
        assert caught.value.status == 400


def test_a_version_that_was_replaced_in_between_is_404():
    old = OpenInference(TEXT.route, {}, "6")
    with pytest.raises(HttpError, match="version 6 of model was replaced") as caught:
        read(old, in_json("text", ["a"]))
    assert caught.value.status == 404


def test_a_schema_that_is_no_tensor_stops_the_server_at_its_start():
    for schema in ({"type": "object"}, {"type": "array"}, {"type": "array", "items": {"type": "string"}}):
        with pytest.raises(AssertionError, match="schema ends in"):
            OpenInference(Route("/p", key="x", schema=schema), {})
