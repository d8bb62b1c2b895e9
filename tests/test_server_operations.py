"""What an operator does to a running server: look at its metrics, give it another model, lose a worker."""

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.metrics import MOST_LABELS, Metrics, merged, render
from common.request_log import rotate
from tests.test_server_microbatch import PATIENCE_S, TINY_SERVER, Tiny, wait_until

TOKEN = "0123456789abcdef-admin"
RELOADABLE = (
    TINY_SERVER.replace('    model_id, example = "tiny-1", "2"\n', '    example = "2"\n')
    .replace(
        "        self.args = args\n",
        "        self.args, self.held = args, json.load(open(args.ckpt))\n        self.model_id = self.held['id']\n",
    )
    .replace("if self.args.bad_golden:", "if self.held.get('bad'):")
    .replace("* 2\n", "* self.held['gain']\n")
    .replace("import argparse, os", "import argparse, json, os")
    .replace('"rows": len(rows)}', '"rows": len(rows), "label": f"pid {os.getpid()}"}')
    .replace('parser.add_argument("--load_gate"', 'parser.add_argument("--ckpt")\nparser.add_argument("--load_gate"')
)


class Reloadable(Tiny):
    """A tiny server whose model is a JSON file: {"id", "gain"}; "bad" fails the golden replay."""

    script_text, model_id = RELOADABLE, "m1"

    def __init__(self, folder: Path, *flags: str, ready: bool = True):
        self.ckpt, self.token = folder / "model.json", folder / "token"
        self.ckpt.write_text('{"id": "m1", "gain": 2}')
        self.token.write_text(TOKEN + "\n")
        super().__init__(folder, "--ckpt", str(self.ckpt), "--admin_token_file", str(self.token), *flags, ready=ready)

    def reload(self, wanted: object = None, token: str = TOKEN):
        body = b"" if wanted is None else json.dumps(wanted).encode()
        return self.ask("POST", "/admin/reload", body, {"Authorization": f"Bearer {token}"})

    def metrics(self) -> dict[str, float]:
        """{"name{labels}": value} of every sample."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        families = text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
        return {f"{s.name}{{{','.join(f'{k}={v}' for k, v in sorted(s.labels.items()))}}}": s.value for s in samples}


@pytest.fixture
def operate(tmp_path):
    servers = []

    def start(*flags, **options) -> Reloadable:
        servers.append(Reloadable(tmp_path, *flags, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


# -- metrics --


def test_metrics_count_what_happened(operate):
    server = operate()
    for item in ("1", "2", "nan"):
        server.predict(item)
    server.ask("POST", "/predict", {"xs": ["1", "2", "3"]})
    server.ask("POST", "/predict", b"{")
    server.ask("GET", "/nowhere")
    server.ask("GET", "/predict")
    metrics = server.metrics()
    assert metrics["http_requests_total{path=/predict,status=200}"] == 3
    assert metrics["http_requests_total{path=/predict,status=405}"] == 1
    assert metrics["http_requests_total{path=_other,status=404}"] == 1
    assert metrics["rejections_total{reason=failed}"] == 1  # nan
    assert metrics["rejections_total{reason=invalid}"] == 3  # not JSON, no such path, no such method
    for stage in ("queue", "decode", "model", "total"):
        assert metrics[f"prediction_seconds_count{{stage={stage}}}"] == 3
    parts = sum(metrics[f"prediction_seconds_sum{{stage={stage}}}"] for stage in ("queue", "decode", "model"))
    assert parts == pytest.approx(metrics["prediction_seconds_sum{stage=total}"])
    assert metrics["batch_rows_bucket{le=1.0}"] == 3  # nan was a batch too
    assert metrics["batch_rows_sum{}"] == 6
    assert metrics[f"predictions_total{{label=pid {server.process.pid}}}"] == 5
    assert metrics["model_info{model_id=m1,name=model,version=m1}"] == metrics["model_ready{}"] == 1
    assert metrics["queue_rows{}"] == metrics["predictions_in_flight{}"] == 0
    assert metrics["process_resident_memory_bytes{}"] > 1e7
    assert time.time() - 600 < metrics["process_start_time_seconds{}"] < time.time()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing(operate):
    server = operate("--request_log", os.devnull)
    server.predict("1")
    server.predict("nan")
    server.reload()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_labels_are_bounded_and_escaped():
    metrics = Metrics()
    for n in range(MOST_LABELS + 50):
        metrics.count_class(f"class {n}")
    metrics.count_class("class 0")
    awkward = 'a"b\\c\nd'
    metrics.count("model_reloads_total", f'result="{awkward}"'.replace(awkward, 'a\\"b\\\\c\\nd'))
    families = {family.name: family for family in text_string_to_metric_families(render([metrics.snapshot({})]))}
    counts = {sample.labels["label"]: sample.value for sample in families["predictions"].samples}
    assert (len(counts), counts["_other"], counts["class 0"]) == (MOST_LABELS + 1, 50, 2)
    assert families["model_reloads"].samples[0].labels["result"] == awkward


def test_merged_snapshots_add_up():
    one, two = Metrics(), Metrics()
    for metrics, value in ((one, 0.002), (one, 99.0), (two, 0.002)):
        metrics.count("http_requests_total", 'path="/",status="200"')
        metrics.observe("prediction_seconds", value, 'stage="total"')
    gauges = {"queue_rows": {"": 3}}
    both = merged([json.loads(json.dumps(metrics.snapshot(gauges))) for metrics in (one, two)])
    assert both["counts"]["http_requests_total"] == {'path="/",status="200"': 3}
    total, buckets = both["histograms"]["prediction_seconds"]['stage="total"']
    assert (total, sum(buckets), buckets[-1], buckets[1]) == (pytest.approx(99.004), 3, 1, 2)
    assert both["gauges"]["queue_rows"] == {"": 6}
    assert 'prediction_seconds_bucket{stage="total",le="+Inf"} 3\n' in render([both])


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


# -- traces and the log --


def test_a_trace_goes_on_as_a_child(operate, tmp_path):
    server = operate("--request_log", str(tmp_path / "log"))
    sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = server.predict("1", traceparent=sent)[1]
    assert re.fullmatch("00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01", headers["traceparent"])
    assert headers["traceparent"] != sent
    for wrong in (
        "",
        "00-xyz",
        sent.upper(),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        "ff" + sent[2:],
        sent + "-1",
        sent + "1",
    ):
        assert "traceparent" not in server.predict("1", traceparent=wrong)[1]
    for newer in ("01" + sent[2:], "cc" + sent[2:] + "-what"):  # what a version to come adds is passed over
        assert server.predict("1", traceparent=newer)[1]["traceparent"][:36] == headers["traceparent"][:36]
    assert server.stop() == 0
    first, second = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()[:2]]
    assert first["traceparent"] == headers["traceparent"]
    assert "traceparent" not in second


def test_the_log_rotates_by_size(tmp_path):
    path = tmp_path / "log"
    for n in range(8):
        path.write_text(str(n) * 100)
        rotate(str(path), 100)
        assert not path.exists()
    assert [(tmp_path / f"log.{n}").read_text()[0] for n in range(1, 6)] == ["7", "6", "5", "4", "3"]
    assert len(list(tmp_path.iterdir())) == 5
    path.write_text("small")
    rotate(str(path), 100)
    assert path.read_text() == "small"
    rotate(str(tmp_path / "absent"), 100)


def test_a_serving_log_rotates_and_loses_no_line(operate, tmp_path):
    server = operate("--request_log", str(tmp_path / "log"), "--request_log_mb", "0.002", "--workers", "2")
    for n in range(20):
        assert server.predict(str(n))[0] == 200
        time.sleep(0.01)  # so that the lines are not all written at once
    assert server.stop() == 0
    files = sorted(tmp_path.glob("log*"))
    assert len(files) > 1
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(line["pred"] for line in lines) == [2 * n for n in range(20)]


# -- several workers --


def pids(server: Reloadable, tries: int = 40) -> set[str]:
    """The workers that answered."""
    return {server.predict("1")[2]["label"] for _ in range(tries)}


def test_workers_share_the_port_and_the_metrics(operate):
    server = operate("--workers", "2")
    seen = pids(server)
    assert len(seen) == 2
    assert f"pid {server.process.pid}" not in seen
    for _ in range(4):  # whichever answers
        metrics = server.metrics()
        assert sum(value for name, value in metrics.items() if name.startswith("predictions_total{")) == 40
        assert metrics["prediction_seconds_count{stage=total}"] == 40
        assert metrics["model_ready{}"] == metrics["model_info{model_id=m1,name=model,version=m1}"] == 2
    assert server.stop() == 0
    assert not any(Path(f"/proc/{pid[4:]}").exists() for pid in seen)


def kill_worker(label: str) -> None:
    """Kill the worker that answers with `label`, "pid-N"; what is asked from here on goes to the others."""
    os.kill(int(label[4:]), signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{label[4:]}").exists(), "it is gone, and its socket with it")


def test_a_dead_worker_is_started_again(operate):
    server = operate("--workers", "2")
    seen = pids(server)
    lost = min(seen)
    wait_until(lambda: server.metrics()["model_ready{}"] == 2, "both are ready")
    time.sleep(1.5)  # its numbers are collected every second
    before = server.metrics()["prediction_seconds_count{stage=total}"]
    kill_worker(lost)
    wait_until(lambda: server.metrics().get("worker_restarts_total{}") == 1, "the loss is counted")
    for _ in range(10):
        assert server.predict("1")[0] == 200  # the other one is there all the time
    wait_until(lambda: server.metrics()["model_ready{}"] == 2, "the new worker is ready")
    assert lost not in pids(server)
    assert server.metrics()["prediction_seconds_count{stage=total}"] >= before + 50
    assert "ended with -9; it starts again in 0.5 s" in server.stderr()
    assert server.stop() == 0


def test_workers_reload_one_by_one(operate):
    server = operate("--workers", "2")
    server.ckpt.write_text('{"id": "m2", "gain": 3}')
    assert server.reload()[2] == {"status": "reloaded", "model_id": "m2", "was": "m1", "workers": 2}
    assert {server.predict("1")[2]["model_id"] for _ in range(20)} == {"m2"}
    other = server.ckpt.with_name("other.json")
    other.write_text('{"id": "m3", "gain": 4}')
    assert server.reload({"ckpt": str(other)})[0] == 200
    kill_worker(next(iter(pids(server))))  # the next one starts with what was reloaded
    wait_until(lambda: server.metrics().get("worker_restarts_total{}") == 1, "the loss is counted")
    wait_until(lambda: server.metrics()["model_ready{}"] == 2, "the new worker is ready")
    assert {server.predict("1")[2]["model_id"] for _ in range(20)} == {"m3"}
    other.write_text("{")
    status, _, answer = server.reload()
    assert (status, "the old model goes on" in answer["error"]) == (422, True)
    other.write_text('{"id": "m4", "gain": 4}')
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: {server.predict("1")[2]["model_id"] for _ in range(20)} == {"m4"}, "SIGHUP reloads all")
    assert server.stop() == 0


def test_workers_end_with_their_supervisor(operate):
    server = operate("--workers", "2")
    seen = pids(server)
    server.process.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid[4:]}").exists() for pid in seen), "no worker is left")


def test_a_model_that_cannot_be_served_ends_all_workers(operate):
    server = operate("--workers", "2", "--ckpt", "/nowhere", ready=False)
    assert server.process.wait(PATIENCE_S) == 1
    assert "/nowhere" in server.stderr()


def test_sigterm_to_workers_under_load_loses_no_request(operate):
    server = operate("--workers", "2")
    for _ in range(3):
        assert server.predict("1")[0] == 200
    waiting = [server.in_background("1") for _ in range(32)]
    first = waiting[0].get(timeout=PATIENCE_S)
    assert server.stop() == 0
    answers = [first, *(answers.get(timeout=PATIENCE_S) for answers in waiting[1:])]
    # a connection that came after the ports were closed is refused; one that was accepted is answered
    assert all(isinstance(answer, ConnectionError) or answer[0] in (200, 503) for answer in answers)
    assert sum(not isinstance(answer, Exception) and answer[0] == 200 for answer in answers) > 0


def test_a_port_of_other_workers_is_taken(operate, tmp_path):
    first = operate("--workers", "2")
    again = [sys.executable, str(tmp_path / "tiny_server.py"), "--port", str(first.port), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert first.predict("1")[0] == 200
