"""Alarms on their way out: a webhook that fails, hangs or vanishes, a command, and Debian's real Alertmanager."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from common.sinks import Sink, alert, command, webhook
from tests.alertmanager import ALERTMANAGER, Alertmanager
from tests.tiny_server import wait_until

EVENT = {"alarm": "drift_size", "state": "firing", "value": 0.3, "direction": ">=", "threshold": 0.1, "n_samples": 500}
EVENT |= {"severity": "warning", "runbook": "Look.", "at": 1_700_000_000.0, "since": 1_700_000_000.0, "what": "ks 0.3"}
LABELS = {"job": "vision", "instance": "here:8080"}


@pytest.fixture
def hook():
    """A server that answers with the statuses it is told, and keeps what it got."""
    got, statuses = [], []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.end_headers()

        def log_message(self, *args):
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", got, statuses
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_is_tried_again_until_it_takes_the_events(hook):
    url, got, statuses = hook
    statuses += [500, 503]
    sink = Sink("webhook", webhook(url, LABELS), pauses=(0.01, 0.01, 0.01))
    sink.put([EVENT])
    wait_until(lambda: sink.counts["delivered"] == 1, "the delivery")
    assert len(got) == 3
    assert got[0] == got[2] == [alert(EVENT, LABELS)]
    sink.close()


def test_after_the_last_try_it_is_counted_and_the_next_gets_its_chance(hook, caplog):
    url, got, statuses = hook
    statuses += [500] * 2
    sink = Sink("webhook", webhook(url, LABELS), pauses=(0.01,))
    sink.put([EVENT])
    sink.put([{**EVENT, "alarm": "next"}])
    wait_until(lambda: sink.counts["delivered"] == 1, "the delivery")
    assert (sink.counts["failed"], got[-1][0]["labels"]["alertname"]) == (1, "next")
    assert f"could not be delivered to the webhook: {url}: status 500" in caplog.text
    sink.close()


def test_a_webhook_that_hangs_blocks_nobody():
    """It takes the connection and says nothing: what waits is bounded, and the rest is dropped and counted."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        sink = Sink("webhook", webhook(url, LABELS, timeout_s=0.2), pauses=())
        for _ in range(500):
            sink.put([EVENT])
        assert sink.counts["dropped"] >= 300
        wait_until(lambda: sink.counts["failed"] >= 1, "the failure")
        sink.close(timeout_s=0.1)


def test_a_wrong_url_is_refused_at_once():
    for url in ("localhost:9093", "file:///etc/passwd", "ftp://a"):
        with pytest.raises(ValueError, match="wanted a URL that starts with http"):
            webhook(url, LABELS)


def test_a_command_gets_one_event_a_line(tmp_path):
    code = f"import sys; open({str(tmp_path / 'got')!r}, 'a').write(sys.stdin.read())"
    sink = Sink("command", command([sys.executable, "-c", code]), pauses=())
    sink.put([EVENT, {**EVENT, "state": "resolved"}])
    wait_until(lambda: sink.counts["delivered"] == 1, "the delivery")
    assert [json.loads(line)["state"] for line in (tmp_path / "got").read_text().splitlines()] == ["firing", "resolved"]
    sink.close()


def test_a_command_that_fails_is_counted():
    sink = Sink("command", command(["false"]), pauses=())
    sink.put([EVENT])
    wait_until(lambda: sink.counts["failed"] == 1, "the failure")
    sink.close()


@pytest.fixture
def alertmanager(tmp_path):
    if not ALERTMANAGER:
        pytest.skip("Alertmanager is not installed (Debian: prometheus-alertmanager)")
    found = Alertmanager(tmp_path)
    yield found
    found.close()


@pytest.mark.prometheus
def test_the_real_alertmanager_takes_an_alarm_and_its_end(alertmanager):
    sink = Sink("webhook", webhook(f"{alertmanager.url}/api/v2/alerts", LABELS), pauses=(0.1,))
    now = time.time()
    sink.put([{**EVENT, "at": now, "since": now}])
    wait_until(alertmanager.alerts, "the alarm is there")
    (found,) = alertmanager.alerts()
    assert found["labels"] == {"alertname": "drift_size", "severity": "warning", **LABELS}
    assert found["annotations"]["summary"] == "drift_size is 0.3 (alarm when >= 0.1): ks 0.3"
    assert (found["annotations"]["runbook"], found["annotations"]["what"]) == ("Look.", "ks 0.3")
    assert found["status"]["state"] in ("active", "unprocessed")
    sink.put([{**EVENT, "state": "resolved", "since": now, "at": time.time()}])
    wait_until(lambda: alertmanager.alerts() == [], "the alarm is gone")
    wait_until(lambda: sink.counts == {"delivered": 2, "failed": 0, "dropped": 0}, "both are counted")
    sink.close()
