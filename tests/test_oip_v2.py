"""The Open Inference Protocol: by Triton's own client against running servers, and its strictness in this process."""

import base64
import io
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from common import oip_v2
from common.http_wire import HttpError
from common.oip_v2 import OpenInference
from common.predictions import Route
from tests.conftest import ROOT
from tests.test_server_microbatch import Tiny, wait_until

NUMBERS = {"type": "array", "items": {"type": "number"}}

SCRIPT = """
import argparse, base64, hashlib, sys, time
from pathlib import Path
from common.server_microbatch import Route, add_server_flags, run_server

class Predictor:
    model_id = "tiny-1"
    def __init__(self, args):
        self.kind = args.kind
        while args.version_file and not Path(args.version_file).exists():
            time.sleep(0.005)
        self.version = Path(args.version_file).read_text() if args.version_file else "7"
        self.example = {"text": "a b", "series": [1.0, 2.0], "photo": base64.b64encode(b"file").decode()}[args.kind]
    def decode(self, item):
        if self.kind == "photo":
            return item if isinstance(item, bytes) else base64.b64decode(item, validate=True)
        if item == "bad":
            raise ValueError("this text is bad")
        return item
    def predict_rows(self, rows):
        if "raise" in rows:
            raise RuntimeError("secret detail")
        return [self.answer(row) for row in rows]
    def answer(self, row):
        if self.kind == "photo":
            return {"pred": len(row), "label": hashlib.sha256(row).hexdigest()}
        if self.kind == "series":
            halves = [value / 2 for value in row]
            return {"pred": sum(row), "halves": halves, "pairs": [halves[:2], [1, 2]], "last": row[-1], "row": str(row)}
        answer = {"pred": len(row), "label": row.upper(), "conf": 0.25, "known": row != "new"}
        answer["top"] = [{"label": word, "prob": 0.5} for word in row.split()]
        return {**answer, "more": 1} if row == "more" else answer
    def check_golden(self):
        pass

parser = argparse.ArgumentParser()
add_server_flags(parser, 8080)
parser.add_argument("--kind")
parser.add_argument("--version_file")
args = parser.parse_args()
KEYS = {"text": "text", "series": "values", "photo": "image_base64"}
SCHEMAS = {"series": {"type": "array", "items": {"type": "number"}}}
schema = SCHEMAS.get(args.kind, {"type": "string"})
route = Route("/predict", key=KEYS[args.kind], name=args.kind, form=args.kind, schema=schema)
sys.exit(run_server(lambda: Predictor(args), route, args))
"""


class OfKind(Tiny):
    """Flags: --kind text, series or photo; --version_file holds the model's version, and is waited for."""

    script_text = SCRIPT


class Vision(Tiny):
    """The real project; flags as it has them."""

    script_text = "from project_vision_cls.serve import main\nmain()\n"


def running(kind: str):
    """A fixture: one server of the kind for the whole file."""

    @pytest.fixture(scope="module", name=kind)
    def server(tmp_path_factory):
        server = OfKind(tmp_path_factory.mktemp(kind), "--kind", kind)
        yield server
        code = server.stop()
        server.close()
        assert code == 0

    return server


text_server, series_server, photo_server = running("text"), running("series"), running("photo")


@pytest.fixture
def client():
    """client(server) → Triton's client for it."""
    clients = []

    def connect(server: Tiny) -> InferenceServerClient:
        clients.append(InferenceServerClient(f"127.0.0.1:{server.port}"))
        return clients[-1]

    yield connect
    for one in clients:
        one.close()


def tensor(name: str, values: np.ndarray, datatype: str = "BYTES", binary: bool = True) -> InferInput:
    return InferInput(name, list(values.shape), datatype).set_data_from_numpy(values, binary_data=binary)


def strings(*values) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


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


def in_json(name: str, values: list, shape: list[int] | None = None, datatype: str = "BYTES") -> dict:
    return {"inputs": [{"name": name, "shape": shape or [len(values)], "datatype": datatype, "data": values}]}


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


# -- the vision project --


def test_the_same_photo_gives_the_same_probabilities_by_every_way(colour_run, colour_photos, tmp_path, client):
    server = Vision(tmp_path, "--ckpt", str(colour_run / "best.pt"), ready=False)
    assert server.process.stdout.readline().startswith("ready with model"), server.stderr()
    files = []
    for source in sorted((colour_photos / "test").rglob("0.png")):
        buffer = io.BytesIO()
        Image.open(source).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    texts = [base64.b64encode(data).decode() for data in files]
    one = client(server)
    in_binary = one.infer("vision", [tensor("image_base64", strings(*files))])
    version = one.get_model_metadata("vision")["versions"][0]
    path = f"/v2/models/vision/versions/{version}/infer"
    answer = server.ask("POST", path, in_json("image_base64", texts))[2]
    by_json = {output["name"]: output["data"] for output in answer["outputs"]}
    plain = [server.ask("POST", "/predict", {"image_base64": text})[2] for text in texts]
    assert len(files) == 3
    for name in ("pred", "prob"):
        wanted = pytest.approx([answer[name] for answer in plain], abs=1e-6)
        assert in_binary.as_numpy(name).tolist() == wanted
        assert by_json[name] == wanted
    labels = [answer["label"] for answer in plain]
    assert [label.decode() for label in in_binary.as_numpy("label")] == by_json["label"] == labels
    for answer, by_binary, text in zip(plain, in_binary.as_numpy("top"), by_json["top"], strict=True):
        for top in (json.loads(by_binary), json.loads(text)):
            assert [entry["label"] for entry in top] == [entry["label"] for entry in answer["top"]]
            assert [e["prob"] for e in top] == pytest.approx([e["prob"] for e in answer["top"]], abs=1e-6)
    with pytest.raises(InferenceServerException, match=r"photo|image") as caught:
        one.infer("vision", [tensor("image_base64", strings(files[0], b"no photo"))])
    assert caught.value.status() == "422"
    assert server.stop() == 0
    server.close()


class Texts(Tiny):
    script_text = "from project_nlp_intent.serve import main\nmain()\n"


class Series(Tiny):
    script_text = "from project_ts_forecast.serve import main\nmain()\n"


@pytest.mark.parametrize(
    ("kind", "run", "name", "key"), [(Texts, "intent_run", "intent", "text"), (Series, "wave_run", "ts", "values")]
)
def test_the_other_real_servers_in_binary(kind, run, name, key, request, client, tmp_path):
    ckpt = request.getfixturevalue(run) / "best.pt"
    server = kind(tmp_path, "--ckpt", str(ckpt), ready=False)
    assert server.process.stdout.readline().startswith("ready with model"), server.stderr()
    paths = server.ask("GET", "/openapi.json")[2]["paths"]
    route = next(path for path in ("/predict", "/forecast") if path in paths)
    item = paths[route]["post"]["requestBody"]["content"]["application/json"]["examples"]["one"]["value"]
    sent = (strings(item[key].encode()), "BYTES") if key == "text" else (np.array([item[key]], np.float64), "FP64")
    answer, plain = client(server).infer(name, [tensor(key, *sent)]), server.ask("POST", route, item)[2]
    wanted = np.asarray(plain["pred"], np.float64).reshape(-1)
    assert answer.as_numpy("pred").reshape(-1).tolist() == pytest.approx(wanted.tolist(), rel=1e-6)
    assert server.stop() == 0
    server.close()


# -- strictness, in this process --

TEXT = OpenInference(Route("/p", key="text", form="text"), {"pred": 1, "label": "a"})
SERIES = OpenInference(Route("/p", key="values", form="series", schema=NUMBERS), {"pred": 0.5})
PHOTO = OpenInference(Route("/p", key="image", form="photo"), {"pred": 1})
CUBES = OpenInference(
    Route("/p", key="values", form="series", schema={"type": "array", "items": NUMBERS}), {"pred": 0.5}
)


def job_of(body: bytes, head: str | None = None) -> SimpleNamespace:
    headers = {} if head is None else {"inference-header-content-length": head}
    request = SimpleNamespace(headers=headers)
    predictor = SimpleNamespace(model_id="m", version="7")
    return SimpleNamespace(body=body, request=request, predictor=predictor, wanted=None, is_list=False)


def read(protocol: OpenInference, body: object, tail: bytes | None = None) -> list:
    head = body if isinstance(body, bytes) else json.dumps(body).encode()
    return protocol.read(job_of(head + (tail or b""), None if tail is None else str(len(head))))


def binary(name: str, shape: list, datatype: str, tail: bytes, **fields) -> dict:
    parameters = {"binary_data_size": len(tail)}
    return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "parameters": parameters, **fields}]}


def packed(*elements: bytes) -> bytes:
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def with_tensor(**fields) -> dict:
    """A good request for SERIES with other fields in its tensor; those that are ... are left out."""
    held = {"name": "values", "shape": [2, 1], "datatype": "FP64", "data": [1, 2], **fields}
    return {"inputs": [{key: value for key, value in held.items() if value is not ...}]}


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


EIGHT = np.array([1.0]).tobytes()
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


# -- answers --


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
