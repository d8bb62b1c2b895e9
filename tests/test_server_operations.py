"""What an operator may do to a running server: give it another model, with the right token."""

import hashlib
import http.client
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_server import PATIENCE_S, TOKEN, Reloadable, starting, wait_until


@pytest.fixture
def operate(tmp_path):
    yield from starting(Reloadable, tmp_path)


# -- another model --


def test_reload_swaps_the_model(operate):
    server = operate()
    assert server.predict("4")[2]["pred"] == 8
    server.ckpt.write_text('{"id": "m2", "gain": 3}')
    status, _, answer = server.reload()
    assert (status, answer) == (200, {"status": "reloaded", "model_id": "m2", "was": "m1"})
    answer = server.predict("4")[2]
    assert (answer["pred"], answer["model_id"]) == (12, "m2")
    metrics = server.metrics()
    assert metrics["model_reloads_total{result=done}"] == 1
    assert metrics["model_info{model_id=m2,name=model,version=m2}"] == 1


@pytest.mark.parametrize(
    ("text", "wanted", "words"),
    [
        ('{"id": "m2", "gain": 3, "bad": true}', {}, "golden"),
        ("{", {}, "refused, the old model goes on"),
        ('{"id": "m2", "gain": 3}', {"sha256": "0" * 64}, "sha256 [0-9a-f]{64}, wanted 000"),
        ('{"id": "m2", "gain": "x"}', {}, "refused"),
        ('{"id": "m2", "gain": 3}', {"ckpt": "/nowhere"}, "/nowhere"),
        ('{"id": "m2", "gain": 3}', {"ckpt": "/nowhere", "sha256": "0" * 64}, "cannot be read"),
        ('{"id": "m2", "gain": 3}', {"ckpt": "/dev/zero", "sha256": "0" * 64}, "not a regular file"),
    ],
)
def test_a_refused_model_changes_nothing(operate, text, wanted, words):
    server = operate()
    server.ckpt.write_text(text)
    status, _, answer = server.reload(wanted)
    assert status == 422
    assert re.search(words, answer["error"])
    assert server.predict("4")[2]["pred"] == 8
    assert server.metrics()["model_reloads_total{result=refused}"] == 1
    server.ckpt.write_text('{"id": "m3", "gain": 5}')
    assert server.reload({"sha256": hashlib.sha256(server.ckpt.read_bytes()).hexdigest().upper()})[0] == 200
    assert server.predict("4")[2]["pred"] == 20


def test_requests_under_way_keep_their_model(operate, tmp_path):
    server = operate()
    gate = tmp_path / "gate"
    slow = server.in_background(f"wait:{gate}")
    wait_until(Path(f"{gate}.started").exists, "the model got the blocking row")
    queued = server.in_background("5")
    wait_until(lambda: server.ask("GET", "/health")[2]["queue"] == 2, "the second is queued")
    server.ckpt.write_text('{"id": "m2", "gain": 3}')
    other = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    other.request("POST", "/admin/reload", b"", {"Authorization": f"Bearer {TOKEN}"})
    wait_until(lambda: server.reload()[0] == 409, "the reload is under way")
    gate.touch()
    assert [answers.get(timeout=PATIENCE_S)[2]["model_id"] for answers in (slow, queued)] == ["m1", "m1"]
    assert other.getresponse().status == 200
    other.close()
    assert server.predict("5")[2]["pred"] == 15


def test_sighup_reloads(operate):
    server = operate()
    server.ckpt.write_text('{"id": "m2", "gain": 3}')
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.predict("1")[2]["model_id"] == "m2", "the new model answers")
    server.ckpt.write_text("{")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "the old model goes on" in server.stderr(), "the refusal is logged")
    assert server.predict("1")[2]["model_id"] == "m2"
    assert server.stop() == 0


@pytest.mark.parametrize("body", [[1], {"ckpt": 3}, {"path": "x"}, {"sha256": None}])
def test_a_reload_of_the_wrong_shape_is_400(operate, body):
    assert operate().reload(body)[0] == 400


# -- tokens --


def test_admin_routes_want_the_token(operate):
    server = operate()
    for token in ("", "wrong-token-wrong-token", TOKEN[:-1], TOKEN + "x", "ä" * 20):
        status, headers, answer = server.reload(token=token.encode().decode("latin-1"))
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert TOKEN not in answer["error"]
    assert server.ask("POST", "/admin/reload", b"")[0] == 401
    assert server.reload()[0] == 200
    assert server.predict("1")[0] == 200  # open: no --api_token_file


def test_admin_routes_are_off_without_a_token(operate):
    server = operate("--admin_token_file", "")
    status, _, answer = server.ask("POST", "/admin/reload", b"", {"Authorization": "Bearer "})
    assert status == 403
    assert "--admin_token_file" in answer["error"]


def test_an_api_token_guards_predictions_and_nothing_else(operate, tmp_path):
    (tmp_path / "api").write_text("an-api-token-of-24-chars")
    server = operate("--api_token_file", str(tmp_path / "api"))
    assert server.predict("1")[0] == 401
    assert server.predict("1", Authorization="Bearer an-api-token-of-24-chars")[0] == 200
    assert server.predict("1", Authorization=f"Bearer {TOKEN}")[0] == 401
    assert server.ask("GET", "/health")[0] == server.ask("GET", "/ready")[0] == 200


@pytest.mark.parametrize(
    ("text", "words"), [(None, "cannot be read"), ("short\n", "5 characters"), ("ä" * 20, "ASCII")]
)
def test_a_bad_token_file_stops_the_start(tmp_path, text, words):
    if text is not None:
        (tmp_path / "token").write_text(text)
    command = ["-m", "project_vision_cls.serve", "--port", "0", "--admin_token_file", str(tmp_path / "token")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
