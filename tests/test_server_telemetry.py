"""What a running server tells about itself: metrics, traces, the request log, and the alarm of its latency."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.metrics import MOST_LABELS, Metrics, merged, render
from common.request_log import rotate
from tests.tiny_server import Reloadable, Tiny, read_answer, request_bytes, starting, wait_until


@pytest.fixture
def serve(tmp_path):
    yield from starting(Tiny, tmp_path)


@pytest.fixture
def operate(tmp_path):
    yield from starting(Reloadable, tmp_path)


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


# -- log and alarm --


def test_the_request_log_has_a_line_per_prediction(serve, tmp_path):
    path = tmp_path / "requests.jsonl"
    server = serve("--request_log", str(path))
    server.predict("4", X_Request_ID="one")
    server.ask("POST", "/predict", {"xs": ["1", "nan"]})
    server.predict("nan")
    assert server.stop() == 0
    one, many, failed = [json.loads(line) for line in path.read_text().splitlines()]
    assert " ".join(one) == (
        "ts req_id path model_id model_version data_version data_hash lat_ms queue_ms batch status pred prob"
    )
    assert one["data_hash"] == hashlib.sha256(b'{"x": "4"}').hexdigest()
    assert (one["req_id"], one["model_id"], one["status"], one["pred"], one["prob"]) == ("one", "tiny-1", 200, 8.0, 0.5)
    assert (many["pred"], many["batch"]) == ([2.0], 2)
    assert (failed["status"], failed["pred"]) == (500, None)
    assert 0 <= one["queue_ms"] <= one["lat_ms"]


def test_a_full_disk_is_counted_and_serving_goes_on(serve):
    server = serve("--request_log", "/dev/full")
    for _ in range(3):
        assert server.predict("4")[0] == 200
    wait_until(lambda: server.ask("GET", "/health")[2]["log_lines_lost"] == 3, "the lost lines are counted")
    assert server.stop() == 0
    assert server.stderr().count("serving goes on") == 1


def test_the_latency_alarm_shows_in_the_answers(serve):
    server = serve("--alert_p95_ms", "0.0001")
    with server.socket() as client, client.makefile("rb") as stream:
        alerts = []
        for _ in range(302):
            client.sendall(request_bytes("1"))
            alerts.append(json.loads(read_answer(stream)[2])["alert"])
    assert alerts[299] == []
    assert alerts[300:] == [["lat_p95"]] * 2  # three checks in a row, of 100 answers each
    wait_until(lambda: "alarm {" in server.stderr(), "the monitor's thread has said so")
    assert server.stderr().count("alarm {") == 1
