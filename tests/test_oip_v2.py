"""The Open Inference Protocol of running servers: by Triton's own client and in plain HTTP."""

import base64
import json
import signal

import numpy as np
import pytest
from tritonclient.http import InferRequestedOutput
from tritonclient.utils import InferenceServerException

from tests.conftest import ROOT
from tests.oip_v2 import OfKind, connecting, in_json, running, strings, tensor
from tests.tiny_server import wait_until

text_server, series_server, photo_server = running("text"), running("series"), running("photo")
client = connecting()


# -- Triton's client --


def test_health_and_metadata(text, series, client):
    one = client(text)
    assert one.is_server_live()
    assert one.is_server_ready()
    assert one.is_model_ready("text")
    assert one.is_model_ready("text", "7")
    assert not one.is_model_ready("text", "8")
    assert not one.is_model_ready("other")
    about = one.get_server_metadata()
    assert (about["name"], "binary_tensor_data" in about["extensions"]) == ("ml-e2e", True)
    assert f'version = "{about["version"]}"' in (ROOT / "pyproject.toml").read_text()
    outputs = {"pred": "INT64", "label": "BYTES", "conf": "FP64", "known": "BOOL", "top": "BYTES"}
    for version in ("", "7"):
        model = one.get_model_metadata("text", version)
        assert model.pop("outputs") == [{"name": k, "datatype": v, "shape": [-1]} for k, v in outputs.items()]
        assert model.pop("inputs") == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert model == {"name": "text", "versions": ["7"], "platform": "pytorch"}
    model = client(series).get_model_metadata("series")
    assert model["inputs"] == [{"name": "values", "datatype": "FP64", "shape": [-1, -1]}]
    kinds = {"pred": ("FP64", 1), "halves": ("FP64", 2), "pairs": ("FP64", 3), "last": ("FP64", 1), "row": ("BYTES", 1)}
    assert model["outputs"] == [{"name": k, "datatype": v, "shape": [-1] * n} for k, (v, n) in kinds.items()]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("column", [False, True])
def test_texts(text, client, binary_in, binary_out, column):
    values = strings("größer", b"as bytes", "")
    given_tensor = tensor("text", values.reshape(3, 1) if column else values, binary=binary_in)
    names = ["pred", "label", "conf", "known", "top"]
    asked = None if binary_out is None else [InferRequestedOutput(name, binary_data=binary_out) for name in names]
    result = client(text).infer("text", [given_tensor], outputs=asked, request_id="é-1", model_version="7")
    head = result.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("é-1", "text", "7")
    assert head["parameters"]["lat_ms"] >= 0
    assert [output["name"] for output in head["outputs"]] == names
    assert all(("data" in output) == (binary_out is False) for output in head["outputs"])
    as_text = [value.decode() if isinstance(value, bytes) else value for value in result.as_numpy("label").tolist()]
    assert as_text == ["GRÖSSER", "AS BYTES", ""]
    expected = {"pred": ([6, 8, 0], np.int64), "conf": ([0.25] * 3, np.float64), "known": ([True] * 3, np.bool_)}
    for name, (wanted, dtype) in expected.items():
        found = result.as_numpy(name)
        assert (found.tolist(), found.dtype, found.shape) == (wanted, dtype, (3,))
    tops = [json.loads(value) for value in result.as_numpy("top").tolist()]
    assert tops[1] == [{"label": "as", "prob": 0.5}, {"label": "bytes", "prob": 0.5}]
    assert result.get_output("top")["parameters"]["json"] is True


def test_outputs_are_those_asked_for_each_in_its_own_way(text, client):
    asked = [InferRequestedOutput("label", binary_data=False), InferRequestedOutput("pred")]
    result = client(text).infer("text", [tensor("text", strings("a"))], outputs=asked)
    label, pred = result.get_response()["outputs"]
    assert (label["data"], "data" in pred, pred["parameters"]) == (["A"], False, {"binary_data_size": 8})
    assert result.as_numpy("pred").tolist() == [1]
    assert "id" not in result.get_response()
    result = client(text).infer("text", [tensor("text", strings("a"))], parameters={"of_ours": 1})
    assert len(result.get_response()["outputs"]) == 5


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16", "INT64", "INT32", "INT16", "INT8", "UINT64", "UINT8"])
@pytest.mark.parametrize("binary", [True, False])
def test_series(series, client, datatype, binary):
    dtype = {"F": "float", "I": "int", "U": "uint"}[datatype[0]] + "".join(filter(str.isdigit, datatype))
    values = np.array([[1, 2, 3], [4, 5, 100]], dtype)
    result = client(series).infer("series", [tensor("values", values, datatype, binary)])
    assert result.as_numpy("pred").tolist() == [6.0, 109.0]
    assert result.as_numpy("halves").tolist() == [[0.5, 1.0, 1.5], [2.0, 2.5, 50.0]]
    assert result.as_numpy("pairs").tolist() == [[[0.5, 1.0], [1.0, 2.0]], [[2.0, 2.5], [1.0, 2.0]]]
    assert result.as_numpy("row").tolist() == [b"[1.0, 2.0, 3.0]", b"[4.0, 5.0, 100.0]"]  # plain floats, always


def test_photos(photo, client):
    files = [bytes(range(256)), b"\xff\xd8 not text", b"x" * 100_000]
    in_binary = client(photo).infer("photo", [tensor("image_base64", strings(*files))])
    in_base64 = strings(*(base64.b64encode(data).decode() for data in files))
    in_json = client(photo).infer("photo", [tensor("image_base64", in_base64, binary=False)])
    assert in_binary.as_numpy("pred").tolist() == in_json.as_numpy("pred").tolist() == [256, 11, 100_000]
    assert in_binary.as_numpy("label").tolist() == in_json.as_numpy("label").tolist()


@pytest.mark.parametrize(
    ("values", "status", "words"),
    [
        (["a", "bad", "raise"], "422", "this text is bad"),
        (["a", "raise", "bad"], "500", "the model failed on this input"),
        (["bad"], "422", "this text is bad"),
        ([b"\xff"], "400", "not UTF-8"),
        (["a"] * 300, "413", "at most 256"),
    ],
)
def test_one_bad_item_fails_the_request_in_words(text, client, values, status, words):
    with pytest.raises(InferenceServerException, match=words) as caught:
        client(text).infer("text", [tensor("text", strings(*values))])
    assert caught.value.status() == status
    assert "secret" not in caught.value.message()


def test_unknown_models_and_versions_are_404_in_words(text, client):
    one, values = client(text), [tensor("text", strings("a"))]
    for ask in (
        lambda: one.infer("other", values),
        lambda: one.infer("text", values, model_version="8"),
        lambda: one.get_model_metadata("other"),
        lambda: one.get_model_config("text"),
    ):
        with pytest.raises(InferenceServerException, match="/v2/models/text") as caught:
            ask()
        assert caught.value.status() == "404"


def test_answers_that_do_not_fit_their_datatype_come_as_json(text, series, client):
    result = client(text).infer("text", [tensor("text", strings("more", "a"))])
    assert result.as_numpy("pred").tolist() == [4, 1]
    assert [json.loads(value) for value in result.as_numpy("more").tolist()] == [1, None]
    values = np.array([[1.0], [2.0]])  # one half only: "pairs" is [[0.5], [1, 2]], which is no tensor
    result = client(series).infer("series", [tensor("values", values, "FP64")])
    assert [json.loads(value) for value in result.as_numpy("pairs").tolist()] == [[[0.5], [1, 2]], [[1.0], [1, 2]]]


# -- plain HTTP --


def test_plain_json(text, series):
    status, headers, answer = text.ask("POST", "/v2/models/text/infer", in_json("text", ["a b"]))
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert answer["parameters"].pop("req_id") == headers["X-Request-ID"]
    assert [output["data"] for output in answer["outputs"][:4]] == [[3], ["A B"], [0.25], [True]]
    body = in_json("values", [[1, 2.5]], [1, 2], "FP64")
    body |= {"id": None, "parameters": None, "outputs": [{"name": "halves", "parameters": None}], "model_name": "x"}
    answer = series.ask("POST", "/v2/models/series/versions/7/infer", body)[2]
    assert answer["outputs"] == [{"name": "halves", "datatype": "FP64", "shape": [1, 2], "data": [0.5, 1.25]}]
    assert text.ask("GET", "/v2/")[2] == text.ask("GET", "/v2")[2]
    assert text.ask("GET", "/v2/models/text/ready")[2] == {"name": "text", "ready": True}


def test_head_wrong_methods_and_types(text):
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/text", "/v2/models/text/versions/7/ready"):
        assert text.ask("HEAD", path)[0] == 200
        assert text.ask("POST", path, {})[0] == 405
    assert text.ask("GET", "/v2/models/text/infer")[0] == 405
    path, body = "/v2/models/text/infer", in_json("text", ["a"])
    assert text.ask("POST", path, body, {"Content-Type": "application/octet-stream"})[0] == 200
    assert text.ask("POST", path, body, {"Content-Type": "image/png"})[0] == 415


def test_versions_share_a_name_in_the_metrics(text):
    text.ask("POST", "/v2/models/text/versions/7/infer", in_json("text", ["a"]))
    connection = text.socket()
    with connection, connection.makefile("rb") as stream:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        page = stream.read().decode()
    assert 'http_requests_total{path="/v2/models/text/versions/_/infer",status="200"}' in page
    assert "versions/7" not in page


def test_a_failed_request_is_no_prediction_in_the_request_log(tmp_path):
    log = tmp_path / "requests.jsonl"
    server = OfKind(tmp_path, "--kind", "text", "--request_log", str(log))
    for values in (["a", "bc"], ["a", "bad"]):
        server.ask("POST", "/v2/models/text/infer", in_json("text", values))
    assert server.stop() == 0
    server.close()
    good, bad = map(json.loads, log.read_text().splitlines())
    assert (good["status"], good["pred"], good["prob"], good["batch"]) == (200, [1, 2], [0.25, 0.25], 2)
    assert (bad["status"], bad["model_version"]) == (422, "7")


def test_loading_tokens_and_another_version(tmp_path):
    token, version = tmp_path / "token", tmp_path / "version"
    token.write_text("0123456789abcdef0123")
    version.write_text("one")
    server = OfKind(tmp_path, "--kind", "text", "--version_file", str(version), "--api_token_file", str(token))
    path, body = "/v2/models/text/versions/one", in_json("text", ["a"])
    assert server.ask("POST", f"{path}/infer", body)[0] == 401
    allowed = {"Authorization": "Bearer 0123456789abcdef0123"}
    assert server.ask("POST", f"{path}/infer", body, allowed)[2]["model_version"] == "one"
    version.write_text("two")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.ask("GET", "/v2/models/text")[2]["versions"] == ["two"], "the other model is served")
    assert server.ask("POST", f"{path}/infer", body, allowed)[0] == server.ask("GET", path)[0] == 404
    assert server.ask("POST", "/v2/models/text/infer", body, allowed)[2]["model_version"] == "two"
    assert server.stop() == 0
    server.close()


def test_while_loading_the_server_lives_and_is_not_ready(tmp_path, client):
    version = tmp_path / "version"
    server = OfKind(tmp_path, "--kind", "text", "--version_file", str(version), ready=False)
    one = client(server)
    assert one.is_server_live()
    assert not one.is_server_ready()
    assert not one.is_model_ready("text")
    for method, path in [("GET", "/v2/models/text"), ("POST", "/v2/models/text/infer")]:
        status, headers, answer = server.ask(method, path)
        assert (status, headers["Retry-After"], answer) == (503, "1", {"error": "the model is still loading"})
    (tmp_path / "written").write_text("9")
    (tmp_path / "written").rename(version)
    wait_until(one.is_server_ready, "the model is loaded")
    assert one.is_model_ready("text", "9")
    assert server.stop() == 0
    server.close()
