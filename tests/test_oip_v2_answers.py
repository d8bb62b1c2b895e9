"""The Open Inference Protocol's answers: every one is written and read back."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.http import InferResult

from common import oip_v2
from common.oip_v2 import OpenInference
from tests.oip_v2 import TEXT


def write(
    protocol: OpenInference, answers: list[dict], asked: dict | None = None, in_binary: bool = True
) -> InferResult:
    job = SimpleNamespace(
        results=answers, predictor=SimpleNamespace(model_id="m"), wanted=("id", asked or {}, in_binary)
    )
    reply = protocol.write(job, {"lat_ms": 1.5, "req_id": "r", "p95": 2.0, "alert": [], "model_id": "m"})
    headers = dict(reply.headers)
    assert reply.status == 200
    assert (reply.content_type == "application/octet-stream") == bool(headers)
    length = headers.get(oip_v2.HEAD_LENGTH)
    return InferResult.from_response_body(reply.body, header_length=length)


PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)
ANSWERS = st.dictionaries(st.sampled_from(["pred", "label", "prob", "top"]), VALUES, max_size=4)
# what a model is likely to say: the same keys, and for each the same kind of value
SAME_KIND = st.sampled_from([st.booleans(), st.integers(-5, 5), st.floats(-9, 9), st.text(max_size=4)]).flatmap(
    lambda kind: st.sampled_from([kind, st.lists(kind, min_size=2, max_size=2), st.lists(kind, max_size=3)])
)
REGULAR = SAME_KIND.flatmap(lambda kind: st.lists(st.fixed_dictionaries({"pred": kind}), min_size=2, max_size=4))


@example({"label": []}, [{"label": 2**53 + 1}], False, False)
@example({}, [{"label": [2**53 + 1, 1]}], True, False)
@given(ANSWERS, st.lists(ANSWERS, min_size=1, max_size=4) | REGULAR, st.booleans(), st.booleans())
def test_any_answers_are_written_and_read_back(example, answers, in_binary, like_them):
    protocol = OpenInference(TEXT.route, answers[0] if like_them else example)
    result = write(protocol, answers, in_binary=in_binary)
    head = result.get_response()
    assert head["parameters"] == {"lat_ms": 1.5, "req_id": "r"}
    assert (head["model_name"], head["model_version"], head["id"]) == ("model", "m", "id")
    assert {output["name"] for output in head["outputs"]} == {key for answer in answers for key in answer}
    for output in head["outputs"]:
        found, values = result.as_numpy(output["name"]).tolist(), [answer.get(output["name"]) for answer in answers]
        if output["datatype"] == "BYTES":
            found = [value.decode() if isinstance(value, bytes) else value for value in found]
        if output.get("parameters", {}).get("json"):
            assert [json.loads(value) for value in found] == values
        else:
            assert found == values
            assert output["shape"][0] == len(answers)


@pytest.mark.parametrize(
    ("example", "values", "datatype", "shape"),
    [
        (1, [2, 3], "INT64", [2]),
        (1, [2, 3.5], "JSON", [2]),
        (1, [2, True], "JSON", [2]),
        (1, [2, 2**63], "JSON", [2]),
        (1, [2, None], "JSON", [2]),
        (0.5, [1, 2], "FP64", [2]),
        (0.5, [1, 2.5], "FP64", [2]),
        (0.5, ["1", 2.5], "JSON", [2]),
        (True, [False, True], "BOOL", [2]),
        ("a", ["é", ""], "BYTES", [2]),
        ("a", ["é", 1], "JSON", [2]),
        (None, [0.5, 0.5], "JSON", [2]),
        ([1, 2], [[3, 4], [5, 6]], "FP64", [2, 2]),
        ([1, 2], [[3, 4, 5], [6, 7, 8.5]], "FP64", [2, 3]),
        ([1, 2], [[3, 4], [5]], "JSON", [2]),
        ([1, 2], [[3, 4], [5, 10**400]], "JSON", [2]),
        ([1, 2], [[], []], "FP64", [2, 0]),
        ([[1, 2]], [[[3, 4]], [[5, 6]]], "FP64", [2, 1, 2]),
        ([[1, 2]], [[[3, 4]], [[5, 6], [7, 8]]], "JSON", [2]),
        (["a"], [["b"], ["c"]], "JSON", [2]),
        ([True], [[True], [False]], "JSON", [2]),
        ([{"label": "a"}], [[], []], "JSON", [2]),
    ],
)
@pytest.mark.parametrize("in_binary", [True, False])
def test_datatypes_of_outputs(example, values, datatype, shape, in_binary):
    protocol = OpenInference(TEXT.route, {"field": example})
    result = write(protocol, [{"field": value} for value in values], in_binary=in_binary)
    output = result.get_output("field")
    as_json = output.get("parameters", {}).get("json", False)
    assert ("JSON" if as_json else output["datatype"], output["shape"]) == (datatype, shape)
    assert ("data" in output) != in_binary
    found = result.as_numpy("field").tolist()
    if as_json:
        assert [json.loads(value) for value in found] == values
    elif datatype == "BYTES":
        assert [value.decode() if in_binary else value for value in found] == values
    else:
        assert found == values


def test_half_a_surrogate_pair_from_a_model_does_not_stop_the_answer():
    assert write(OpenInference(TEXT.route, {"label": "a"}), [{"label": "\ud800"}]).as_numpy("label").tolist() == [b"?"]
