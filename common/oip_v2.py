"""The Open Inference Protocol v2 (REST), so that the clients of KServe and Triton work, beside the plain JSON routes.

    photo = tritonclient.http.InferInput("image_base64", [1], "BYTES")
    photo.set_data_from_numpy(np.array([Path("photo.jpg").read_bytes()], dtype=object))
    client = tritonclient.http.InferenceServerClient("localhost:8080")
    print(client.infer("vision", [photo]).as_numpy("label"))

GET /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME[/versions/VERSION][/ready]; POST .../infer reads one input
tensor, items first, and writes one output tensor for each field of the model's answers. Protocol:
https://github.com/kserve/open-inference-protocol (specification/protocol/inference_rest.md); binary tensors as in
https://github.com/triton-inference-server/server (docs/protocol/extension_binary_data.md).

The input has the route's key as its name: BYTES for strings (UTF-8; a photo in binary is the file itself), FP64 or any
other type of number for lists of numbers. There is no place for the error of one item: the first fails the request. An
output has the datatype that metadata names. Where the answers to a request do not fit it (other types, a key that is
missing, lists of different lengths), and for fields that are no tensor at all, it is BYTES with the JSON text of each
answer's value, and has the parameter "json". Unknown fields and parameters are ignored; null is as good as absent.
"""

from __future__ import annotations

from functools import partial
from urllib.parse import quote

from common.endpoints import BINARY_TYPES, GET, POST, RETRY, Endpoint, Reply, json_reply, to_json
from common.http_wire import HttpError, Request
from common.model_slot import model_version
from common.predictions import Prediction, Route
from common.strict_json import load_json
from common.tensors import NUMBERS, exact, from_binary, from_json, to_binary, to_tensor

SERVER_VERSION = "0.1.0"  # pyproject.toml's
HEAD_LENGTH = "Inference-Header-Content-Length"  # bytes of JSON at the start of a body, before the binary tensors
REFUSED = ("shared_memory_region", "sequence_id", "classification")  # ignoring these would give a wrong answer
KIND_WORDS = {str: "a string", int: "an integer", bool: "true or false", list: "a list", dict: "an object"}


def endpoints(server) -> dict[str, Endpoint]:
    """By path. A version is in the path and not in the name, so that metrics do not grow with every release."""
    predictor, example = server.slot.predictor, server.slot.example_answer
    about = Endpoint(GET, "/v2", page=_server_metadata)
    found = {
        "/v2": about,
        "/v2/": about,
        "/v2/health/live": Endpoint(GET, "/v2/health/live", page=lambda request, body: json_reply({"live": True})),
        "/v2/health/ready": Endpoint(GET, "/v2/health/ready", page=partial(_ready, server, {"ready": True})),
    }
    versions = {"": ("", "")}
    if predictor:
        version = model_version(predictor)
        versions[f"/versions/{quote(version)}"] = ("/versions/_", version)
    for part, (anonymous, version) in versions.items():
        model = f"/v2/models/{quote(server.route.name)}"
        path, name = model + part, model + anonymous
        protocol = OpenInference(server.route, example, version)
        ready = partial(_ready, server, {"name": server.route.name, "ready": True})
        accept = partial(server.accept, protocol)
        found[path] = Endpoint(GET, name, page=partial(_model_metadata, server, protocol))
        found[f"{path}/ready"] = Endpoint(GET, f"{name}/ready", page=ready)
        found[f"{path}/infer"] = Endpoint(
            POST, f"{name}/infer", accept=accept, guard="api", predicts=True, media=BINARY_TYPES
        )
    return found


def _server_metadata(request: Request, body: bytes) -> Reply:
    return json_reply({"name": "ml-e2e", "version": SERVER_VERSION, "extensions": ["binary_tensor_data"]})


def _ready(server, answer: dict, request: Request, body: bytes) -> Reply:
    if why := server.unavailable():
        raise HttpError(503, why, RETRY)
    return json_reply(answer)


def _model_metadata(server, protocol: OpenInference, request: Request, body: bytes) -> Reply:
    if not server.slot.predictor:
        raise HttpError(503, server.unavailable(), RETRY)
    outputs = [
        {"name": name, "datatype": "BYTES" if datatype == "JSON" else datatype, "shape": [-1] * len(shape)}
        for name, (datatype, shape, _) in protocol.outputs.items()
    ]
    inputs = [{"name": protocol.route.key, "datatype": protocol.datatype, "shape": [-1] * protocol.rank}]
    versions = [model_version(server.slot.predictor)]
    about = {"name": protocol.route.name, "versions": versions, "platform": "pytorch"}
    return json_reply({**about, "inputs": inputs, "outputs": outputs})


class OpenInference:
    """Requests and answers of one model. example: an answer of it; version: the one that is asked for, "" for any."""

    errors_by_item = False

    def __init__(self, route: Route, example: dict, version: str = ""):
        self.route, self.version = route, version
        self.datatype, self.rank = _input_type(route.schema)
        self.outputs = {name: to_tensor([value]) for name, value in example.items()}

    def read(self, job: Prediction) -> list:
        """The items of the input tensor; HttpError 400 where the request is wrong, 404 where its version is gone."""
        if self.version and model_version(job.predictor) != self.version:
            raise HttpError(404, f"version {self.version} of {self.route.name} was replaced")
        head, tail = _split(job.body, job.request.headers.get(HEAD_LENGTH.lower()))
        request = load_json(head)
        if not isinstance(request, dict):
            raise HttpError(400, "wanted a JSON object")
        job.wanted = _get(request, "id", str, None), *self._asked(request)
        inputs = _get(request, "inputs", list)
        if len(inputs) != 1 or not isinstance(inputs[0], dict) or inputs[0].get("name") != self.route.key:
            raise HttpError(400, f'"inputs": wanted a list of one tensor with the name "{self.route.key}"')
        items = self._items(inputs[0], tail)
        job.is_list = len(items) > 1
        return items

    def _asked(self, request: dict) -> tuple[dict[str, bool], bool]:
        """({output: binary or not}, empty for all outputs; binary or not by default)."""
        binary = _get(_parameters(request), "binary_data_output", bool, False)
        asked: dict[str, bool] = {}
        for output in _get(request, "outputs", list, []):
            name = _get(output, "name", str) if isinstance(output, dict) else None
            if name not in self.outputs or name in asked:
                raise HttpError(
                    400, f'"outputs": wanted objects with a "name", each once, of {", ".join(self.outputs)}'
                )
            asked[name] = _get(_parameters(output), "binary_data", bool, binary)
        return asked, binary

    def _items(self, tensor: dict, tail: bytes) -> list:
        datatype, shape = _get(tensor, "datatype", str), _get(tensor, "shape", list)
        known = ("BYTES",) if self.datatype == "BYTES" else tuple(NUMBERS)
        if datatype not in known:
            raise HttpError(400, f'"datatype": found {datatype[:20]!r}, wanted {" or ".join(known)}')
        plain = all(type(size) is int and size > 0 for size in shape)
        if not plain or (len(shape) != self.rank and not (datatype == "BYTES" and shape[1:] == [1])):
            raise HttpError(400, f'"shape": wanted {self.rank} sizes of 1 or more, the number of items first')
        size, data = _get(_parameters(tensor), "binary_data_size", int, None), _get(tensor, "data", list, None)
        if (size is None) == (data is None):
            raise HttpError(400, 'the tensor needs either "data" or the parameter "binary_data_size"')
        if len(tail) != (size or 0):
            raise HttpError(400, f"{len(tail)} bytes follow the JSON, wanted {size or 0} of binary data")
        if data is not None:
            return from_json(data, datatype, shape)
        items = from_binary(tail, datatype, shape)
        if datatype != "BYTES" or self.route.form == "photo":
            return items
        try:
            return [item.decode() for item in items]
        except UnicodeDecodeError as error:
            raise HttpError(400, f"a string of {self.route.key} is not UTF-8 (byte {error.start})") from error

    def write(self, job: Prediction, extra: dict) -> Reply:
        """The outputs that were asked for, in that order; by default one for each key of the answers."""
        request_id, asked, binary = job.wanted
        answers, outputs, tails = job.results, [], []
        for name, in_binary in (asked or dict.fromkeys((key for answer in answers for key in answer), binary)).items():
            output, elements = self._output(name, [answer.get(name) for answer in answers])
            if in_binary:
                tails.append(to_binary(output["datatype"], elements))
                output.setdefault("parameters", {})["binary_data_size"] = len(tails[-1])
            else:
                output["data"] = elements
            outputs.append(output)
        answer = {"model_name": self.route.name, "model_version": model_version(job.predictor)}
        answer |= {} if request_id is None else {"id": request_id}
        answer |= {"parameters": {key: extra[key] for key in ("lat_ms", "req_id")}, "outputs": outputs}
        head = to_json(answer).encode()
        if not tails:
            return Reply(200, head)
        return Reply(200, b"".join([head, *tails]), "application/octet-stream", ((HEAD_LENGTH, str(len(head))),))

    def _output(self, name: str, values: list) -> tuple[dict, list]:
        declared = self.outputs[name][0] if name in self.outputs else "JSON"
        datatype, shape, elements = to_tensor(values)
        if (datatype, declared) == ("INT64", "FP64") and exact(elements):
            datatype, elements = "FP64", list(map(float, elements))
        if datatype == declared != "JSON":
            return {"name": name, "datatype": datatype, "shape": shape}, elements
        about = {"name": name, "datatype": "BYTES", "shape": [len(values)], "parameters": {"json": True}}
        return about, [to_json(value) for value in values]


def _input_type(schema: dict) -> tuple[str, int]:
    """(datatype, number of dimensions) of a tensor of such items."""
    rank = 1
    while schema.get("type") == "array":
        schema, rank = schema.get("items", {}), rank + 1
    if schema.get("type") in ("number", "integer"):
        return "FP64", rank
    assert (schema.get("type"), rank) == ("string", 1), f"route.schema ends in {schema}: items are no tensor of it"
    return "BYTES", 1


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """(JSON, binary tensors)."""
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdigit() and len(length) <= 18) or int(length) > len(body):
        raise HttpError(400, f"header {HEAD_LENGTH}: wanted how many of the body's {len(body)} bytes are JSON")
    return body[: int(length)], body[int(length) :]


def _get(of: dict, key: str, kind: type, default: object = ...) -> object:
    """`of[key]`, which has to be of that kind; the default where it is absent or null."""
    value = of.get(key)
    if value is None and default is not ...:
        return default
    if type(value) is not kind:
        raise HttpError(400, f'"{key}": wanted {KIND_WORDS[kind]}')
    return value


def _parameters(of: dict) -> dict:
    parameters = _get(of, "parameters", dict, {})
    if unable := [name for name in REFUSED if name in parameters]:
        raise HttpError(400, f"parameter {unable[0]}: this server cannot do that")
    return parameters
