"""The Open Inference Protocol of the three projects' servers."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.oip_v2 import connecting, in_json, strings, tensor
from tests.tiny_server import Tiny

client = connecting()


class Vision(Tiny):
    """The real project; flags as it has them."""

    script_text = "from project_vision_cls.serve import main\nmain()\n"


class Texts(Tiny):
    script_text = "from project_nlp_intent.serve import main\nmain()\n"


class Series(Tiny):
    script_text = "from project_ts_forecast.serve import main\nmain()\n"


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
