"""deploy/prometheus: the rules by Prometheus's own tools, and the real Prometheus on a running server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from common.metrics import KINDS
from tests.conftest import ROOT
from tests.monitored import ask
from tests.tiny_models import served
from tests.tiny_server import PATIENCE_S, wait_until

FOLDER = ROOT / "deploy" / "prometheus"
pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="Prometheus is not installed (Debian: prometheus)",
    ),
]


@pytest.mark.parametrize(
    "words",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
    ids=" ".join,
)
def test_promtool_agrees(words):
    done = subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_rules_and_dashboard_ask_for_metrics_that_exist():
    ours = {f"{name}{end}" for name in KINDS for end in ("", "_bucket", "_sum", "_count")} | {"up"}
    board = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = (FOLDER / "rules.yml").read_text()
    recorded = set(re.findall(r"record: (\S+)", rules))
    for expression in [*asked, *re.findall(r"expr: (?:>-\n)?(.*)", rules)]:
        for name in re.findall(r"\b([a-z]+(?:_[a-z]+)+)(?=\{|\[)", expression):
            assert name in ours, expression
        for name in re.findall(r"instance:[a-z0-9_:]+", expression):
            assert name in recorded, expression
    assert len(asked) >= 14
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)


def test_the_dashboard_asks_what_prometheus_can_parse(tmp_path):
    board = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    asked = [target["expr"].replace("$instance", ".*") for panel in panels for target in panel["targets"]]
    rules = "".join(f"    - {{record: 'asked:{i}', expr: {json.dumps(asks)}}}\n" for i, asks in enumerate(asked))
    (tmp_path / "rules.yml").write_text(f"groups:\n- name: dashboard\n  rules:\n{rules}")
    words = ["promtool", "check", "rules", str(tmp_path / "rules.yml")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(asked)} rules found" in done.stdout
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in ("timeseries", "table"), panel
        assert all(panel[key] for key in ("title", "datasource")), panel


class Prometheus:
    """The real one, with the rules of the repository at a hundredth of their times."""

    def __init__(self, folder: Path, target: str):
        config = (FOLDER / "prometheus.yml").read_text().replace("15s", "200ms")
        config = config[: config.index("alerting:")].replace('"localhost:8080"', f'"{target}"')
        config = re.sub(r'      - targets: \["localhost:.*\n.*\n', "", config)
        rules = (FOLDER / "rules.yml").read_text().replace("[5m]", "[3s]").replace("for: 5m", "for: 2s")
        (folder / "rules.yml").write_text(rules)
        (folder / "prometheus.yml").write_text(config)
        flags = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        self.log = open(folder / "prometheus.log", "w+")  # noqa: SIM115 - closed by close()
        command = ["prometheus", *flags, "--web.listen-address=127.0.0.1:0"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.path = folder / "prometheus.log"
        wait_until(self._listens, "Prometheus listens")
        wait_until(lambda: self.query("up == 1"), "the server was scraped")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.path.read_text()
        found = re.search(r'msg="Listening on" address=127\.0\.0\.1:(\d+)', self.path.read_text())
        self.url = f"http://127.0.0.1:{found[1]}" if found else ""
        return bool(found)

    def query(self, expression: str) -> list[dict]:
        words = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{words}", timeout=PATIENCE_S) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:  # 503 while it replays its log
            error.close()
            return []

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self.log.close()


@pytest.mark.slow
def test_slow_answers_become_an_alert_and_end_it(tmp_path):
    """Pending, then firing, then resolved, in the real Prometheus, by the rules as they are shipped."""
    with served("tests.tiny_models", "--form", "watched") as url:
        prometheus = Prometheus(tmp_path, url.removeprefix("http://"))
        text, ended, seen = ["hello"], threading.Event(), []

        def drive() -> None:
            while not ended.wait(0.05):
                ask(url, "/predict", {"text": text[0]})

        def state() -> str:
            found = prometheus.query('ALERTS{alertname="PredictionsSlow"}')
            now = found[0]["metric"]["alertstate"] if found else "none"
            if seen[-1:] != [now]:
                seen.append(now)
            return now

        driver = threading.Thread(target=drive)
        driver.start()
        try:
            wait_until(lambda: prometheus.query("instance:predictions:rate5m > 0"), "the recording rule has a value")
            assert state() == "none"
            text[0] = "sleep 1.3"
            wait_until(lambda: state() == "firing", "the alert fires")
            (found,) = prometheus.query("instance:prediction_seconds:p95_5m")
            assert float(found["value"][1]) > 1
            text[0] = "hello"
            wait_until(lambda: state() == "none", "the alert ends")
        finally:
            ended.set()
            driver.join()
            prometheus.close()
    assert seen == ["none", "pending", "firing", "none"]
