"""GET /openapi.json is true of the running server: schemathesis tries to find where it is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from common.json_schema import misfit, values_like
from tests.tiny_models import served

TOKEN = "a-token-for-the-tests"
TOKENS = {"ML_E2E_ADMIN_TOKEN": TOKEN, "ML_E2E_API_TOKEN": TOKEN}
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
CASES = 5  # an operation and phase; when the document was written, 150 found nothing either

CONFIG = """
[generation]
allow-extra-parameters = false  # headers that a server does not know are passed over (RFC 9110, 5.1)
database = "none"

[checks.not_a_server_error]  # 504 is what X-Timeout-Ms: 1 asks for
expected-statuses = ["2xx", "3xx", "4xx", "504"]

[checks.negative_data_rejection]  # 413 is the answer to more items than fit the queue
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "428", "429", "5xx"]

[checks.positive_data_acceptance]  # 422: no schema says what a photo is, or which checkpoints there are
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "422", "429", "5xx"]

[[operations]]
include-path-regex = "/infer$"  # 400: no schema says that there are as many elements as the shape has
checks.positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "400", "401", "403", "404", "409", "422", "429", "5xx"
]
"""


@pytest.fixture(scope="module")
def text(intent_run):
    with served("project_nlp_intent.serve", "--ckpt", intent_run / "best.pt", "--queue", "40", **TOKENS) as url:
        yield url


@pytest.fixture(scope="module")
def series(wave_run):
    with served("project_ts_forecast.serve", "--ckpt", wave_run / "best.pt", **TOKENS) as url:
        yield url


@pytest.fixture(scope="module")
def vision(colour_run):
    with served("project_vision_cls.serve", "--ckpt", colour_run / "best.pt") as url:
        yield url


@pytest.fixture(params=["text", "series", "vision"])
def url(request) -> str:
    return request.getfixturevalue(request.param)


def ask(url: str, method: str, path: str, body: object = None, headers: dict | None = None) -> tuple[int, str, bytes]:
    """(status, content type, body) with the token, unless `headers` says otherwise."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, AUTHORIZED if headers is None else headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get_content_type(), answer.read()
    finally:
        connection.close()


def document(url: str) -> dict:
    status, media, body = ask(url, "GET", "/openapi.json")
    assert (status, media) == (200, "application/json")
    return json.loads(body)


def faults(value: object, name: str, document: dict) -> list[str]:
    """What is wrong with a value of the schema with that name."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return [error.message for error in Draft202012Validator(schema).iter_errors(value)]


def test_the_document_is_valid(url):
    assert [error.message for error in OpenAPIV31SpecValidator(document(url)).iter_errors()] == []


def test_every_path_of_the_server_is_in_the_document_and_answers(url):
    found = document(url)
    status, _, body = ask(url, "GET", "/nothing")
    paths = json.loads(body)["error"].partition("; try ")[2].split(", ")
    assert status == 404
    assert list(found["paths"]) == paths
    for path, about in found["paths"].items():
        for method in {"get", "head", "post"} & set(about):
            told = about[method]["responses"]
            status, media, body = ask(url, method.upper(), path, example(about[method]))
            assert str(status) in told, (method, path, body)
            if "200" in told:
                assert status == 200, (method, path, body)
            assert method == "head" or status != 200 or media in told["200"]["content"]
        for method in {"get", "post", "delete", "options"} - set(about):
            assert ask(url, method.upper(), path)[0] == 405


def example(operation: dict) -> object:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    return content.get("example") or content.get("examples", {}).get("list", {}).get("value")


def test_the_answers_are_those_of_the_document(url):
    found = document(url)
    route = next(path for path in found["paths"] if path in ("/predict", "/forecast"))
    content = found["paths"][route]["post"]["requestBody"]["content"]["application/json"]
    one, many = content["examples"]["one"]["value"], content["examples"]["list"]["value"]
    assert faults(one, "Request", found) == faults(many, "Request", found) == []
    answer = json.loads(ask(url, "POST", route, one)[2])
    assert faults(answer, "Answer", found) == []
    own = set(found["components"]["schemas"]["Prediction"]["required"])
    assert set(answer) == own | {"lat_ms", "p95", "alert", "req_id", "model_id"}
    many["items"] = [*many.popitem()[1], None]
    answers = json.loads(ask(url, "POST", route, many)[2])
    assert faults(answers, "Answers", found) == []
    assert [faults(item, "Prediction", found) == [] for item in answers["items"]] == [True, True, False]
    assert faults(answers["items"][2], "Error", found) == []
    for wrong in ({}, {**one, **many}, {"items": []}, {**one, "more": 2**64}):
        assert faults(wrong, "Request", found) != []
        assert ask(url, "POST", route, wrong)[0] == 400
    assert ask(url, "POST", route, {**one, "more": [1, {"a": None}]})[0] == 200


def test_tokens_and_limits_are_told(text, vision):
    guarded, open_ = document(text), document(vision)
    assert set(guarded["components"]["securitySchemes"]) == {"apiToken", "adminToken"}
    assert guarded["paths"]["/predict"]["post"]["security"] == [{"apiToken": []}]
    assert guarded["paths"]["/admin/reload"]["post"]["security"] == [{"adminToken": []}]
    assert {"200", "401", "409", "422"} <= set(guarded["paths"]["/admin/reload"]["post"]["responses"])
    assert ask(text, "POST", "/predict", {"text": "a"}, headers={})[0] == 401
    assert "securitySchemes" not in open_["components"]
    assert "401" not in open_["paths"]["/predict"]["post"]["responses"]
    refused = open_["paths"]["/admin/reload"]["post"]["responses"]
    assert "403" in refused
    assert "200" not in refused
    assert guarded["components"]["schemas"]["Request"]["oneOf"][1]["properties"]["texts"]["maxItems"] == 40
    assert ask(text, "POST", "/predict", {"texts": ["a"] * 40})[0] == 200
    assert ask(text, "POST", "/predict", {"texts": ["a"] * 41})[0] == 413


def test_an_empty_time_limit_is_no_number(text):
    assert ask(text, "POST", "/predict", {"text": "a"}, {**AUTHORIZED, "X-Timeout-Ms": ""})[0] == 400


def test_before_the_model_is_loaded_the_rest_is_there(tmp_path):
    gate = tmp_path / "gate"
    with served("tests.tiny_models", "--load_gate", gate, ready=False) as url:
        early = document(url)
        assert [error.message for error in OpenAPIV31SpecValidator(early).iter_errors()] == []
        assert early["info"]["version"] == "loading"
        assert "/predict" in early["paths"]
        assert "required" not in early["components"]["schemas"]["Prediction"]
        status, _, body = ask(url, "POST", "/predict", {"text": "a"})
        assert str(status) in early["paths"]["/predict"]["post"]["responses"]
        assert faults(json.loads(body), "Error", early) == []
        gate.touch()
        until = time.monotonic() + 60
        while ask(url, "GET", "/ready")[0] != 200:
            assert time.monotonic() < until, "the server did not get ready"
        late = document(url)
    assert late["info"]["version"] == "20260102T030405"
    assert set(early["paths"]) < set(late["paths"])
    assert late["components"]["schemas"]["Prediction"]["required"] == ["pred", "label", "conf"]


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (True, {"type": "boolean"}),
        (None, {}),
        ([1, 2], {"type": "array", "items": {"type": "integer"}}),
        ([1, 2.5], {"type": "array"}),
        ([], {"type": "array"}),
        ({"a": "b"}, {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}),
    ],
)
def test_a_schema_is_read_off_an_example(value, schema):
    assert values_like(value) == schema
    Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("value", [None, True, 7, 7.5, "7", [7], {"a": 7}, {"a": "7"}, {"a": {"b": []}}])
@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string"},
        {"type": "number"},
        {"type": ["integer", "null"]},
        {"type": "array"},
        {"properties": {"a": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "boolean"}}}}},
    ],
)
def test_a_wrong_type_is_found_where_jsonschema_finds_it(value, schema):
    words = misfit(value, schema)
    assert (words == "") == Draft202012Validator(schema).is_valid(value), words


def test_a_wrong_type_is_told_in_words():
    row = {"type": "object", "properties": {"time": {"type": ["string", "number"]}}}
    assert misfit({"time": []}, row) == '"time": found a list, wanted a string or a number'
    assert misfit({"time": None}, row) == ""  # whoever reads it knows whether it may be missing
    assert misfit(True, row) == "found true or false, wanted an object"


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="this release of schemathesis needs Python 3.11")
@pytest.mark.parametrize("name", ["series", "vision"])
def test_schemathesis_finds_nothing(name, request, tmp_path):
    url = request.getfixturevalue(name)
    command = shutil.which("schemathesis", path=Path(sys.executable).parent)
    (tmp_path / "config.toml").write_text(CONFIG)
    flags = ["--max-examples", CASES, "--seed", 1, "--header", f"Authorization: Bearer {TOKEN}"]
    flags += ["--include-path-regex", "^/"]  # by default it passes over the path of the document
    # what is only a warning: binary bodies have no schema, and shapes drawn at random seldom fit their data
    flags += ["--warnings", "off", "--no-color"]
    run = [command, "--config-file", tmp_path / "config.toml", "run", f"{url}/openapi.json", *flags]
    done = subprocess.run(list(map(str, run)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    operations = sum(len(set(about) - {"parameters"}) for about in document(url)["paths"].values())
    assert f"Tested: {operations}" in done.stdout
