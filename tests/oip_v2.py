"""What the tests of the Open Inference Protocol share: servers that speak it, requests, and readers in this process."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput

from common.oip_v2 import OpenInference
from common.predictions import Route
from tests.tiny_server import Tiny

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


def connecting():
    """A fixture: client(server) → Triton's client for it."""

    @pytest.fixture
    def client():
        clients = []

        def connect(server: Tiny) -> InferenceServerClient:
            clients.append(InferenceServerClient(f"127.0.0.1:{server.port}"))
            return clients[-1]

        yield connect
        for one in clients:
            one.close()

    return client


def tensor(name: str, values: np.ndarray, datatype: str = "BYTES", binary: bool = True) -> InferInput:
    return InferInput(name, list(values.shape), datatype).set_data_from_numpy(values, binary_data=binary)


def strings(*values) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def in_json(name: str, values: list, shape: list[int] | None = None, datatype: str = "BYTES") -> dict:
    return {"inputs": [{"name": name, "shape": shape or [len(values)], "datatype": datatype, "data": values}]}


TEXT = OpenInference(Route("/p", key="text", form="text"), {"pred": 1, "label": "a"})
SERIES = OpenInference(Route("/p", key="values", form="series", schema=NUMBERS), {"pred": 0.5})
PHOTO = OpenInference(Route("/p", key="image", form="photo"), {"pred": 1})
CUBES = OpenInference(
    Route("/p", key="values", form="series", schema={"type": "array", "items": NUMBERS}), {"pred": 0.5}
)
EIGHT = np.array([1.0]).tobytes()


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
