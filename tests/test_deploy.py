"""deploy/: the files parse, what they name is there, and the real HAProxy loses no request at a rolling restart."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.tiny_server import PATIENCE_S, Tiny, wait_until

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
BALANCER = (DEPLOY / "haproxy.cfg").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text(encoding="utf-8"))
PORTS = {"vision": 8080, "intent": 8081, "ts": 8082}


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def instruction(name: str) -> list[str]:
    """The words of a Dockerfile's CMD or HEALTHCHECK, in exec form: no shell stands between signal and server."""
    (found,) = re.findall(rf"^{name}.*?(\[.*\])$", DOCKERFILE, re.MULTILINE)
    return json.loads(found)


def pods() -> list[tuple[dict, dict]]:
    """(pod, container) of Kubernetes and KServe."""
    pod = documents("kubernetes/vision.yaml")[0]["spec"]["template"]["spec"]
    predictor = documents("kserve/vision.yaml")[0]["spec"]["predictor"]
    return [(pod, pod["containers"][0]), (predictor, predictor["containers"][0])]


def commands() -> list[list[str]]:
    of_compose = [service["command"] for service in COMPOSE["services"].values() if "command" in service]
    return [instruction("CMD"), *of_compose, *(container["args"] for _, container in pods())]


def value_of(command: list[str], flag: str) -> str:
    words = " ".join(command).replace("=", " ").split()
    return words[words.index(flag) + 1]


@pytest.mark.parametrize("path", [*DEPLOY.rglob("*.y*ml")], ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_every_yaml_file_parses(path):
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command[2]} {value_of(command, '--port')}")
def test_servers_have_the_flags_they_are_started_with(command, capsys):
    assert command[:2] == ["python", "-m"]
    with pytest.raises(SystemExit) as end:
        importlib.import_module(command[2]).main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    for flag in re.findall(r"--\w+", " ".join(command)):
        assert f"{flag} " in shown, flag
    project = {"project_vision_cls": "vision", "project_nlp_intent": "intent", "project_ts_forecast": "ts"}
    assert int(value_of(command, "--port")) == PORTS[project[command[2].split(".")[0]]]
    assert value_of(command, "--host") == "0.0.0.0"


def test_ports_and_names_agree():
    services = COMPOSE["services"]
    servers = {name: value_of(one["command"], "--port") for name, one in services.items() if "command" in one}
    assert dict(re.findall(r"^    server (\S+) \1:(\d+)$", BALANCER, re.MULTILINE)) == servers
    assert {port.split(":")[0] for port in services["haproxy"]["ports"]} == set(map(str, PORTS.values()))
    assert all(services[name]["environment"]["PORT"] == port for name, port in servers.items())
    assert set(services["haproxy"]["depends_on"]) == servers.keys()
    scraped, balancer = documents("prometheus/compose.yml")[0]["scrape_configs"]
    targets = {target for group in scraped["static_configs"] for target in group["targets"]}
    assert targets == {f"{name}:{port}" for name, port in servers.items()}
    assert f"bind :{balancer['static_configs'][0]['targets'][0].split(':')[1]}" in BALANCER
    for _, container in pods():
        assert [port["containerPort"] for port in container["ports"]] == [8080]
    service, budget, scaler = documents("kubernetes/vision.yaml")[1:]
    labels = documents("kubernetes/vision.yaml")[0]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"] == labels
    assert scaler["spec"]["scaleTargetRef"]["name"] == documents("kubernetes/vision.yaml")[0]["metadata"]["name"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), volume


def test_there_is_time_to_finish_what_was_accepted():
    for pod, container in pods():
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert pod["terminationGracePeriodSeconds"] > int(command[1]) + float(value_of(container["args"], "--drain_s"))
    for service in COMPOSE["services"].values():
        if "command" in service:
            assert int(service["stop_grace_period"].rstrip("s")) > 20  # --drain_s


def test_the_image_has_what_pyproject_says_and_nothing_of_the_tests():
    torch = re.search(r'^dependencies = \["(torch[^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f'"{torch}"' in DOCKERFILE
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    assert {"common", *(path.name for path in ROOT.glob("project_*"))} <= set(copied)
    assert "tests" not in copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {re.sub("^project_.*", "project_*", name) for name in copied} == {
        line[1:] for line in ignored if line[0] == "!"
    }


@pytest.fixture
def servers(tmp_path):
    running: dict[str, Tiny] = {}

    def start(name: str, port: int = 0) -> Tiny:
        (tmp_path / name).mkdir(exist_ok=True)
        patient = ["--timeout_ms", "600000", "--drain_s", "600"]  # a busy machine may stop everything for a while
        running[name] = Tiny(tmp_path / name, "--port", str(port), *patient)
        return running[name]

    yield start
    for server in running.values():
        server.close()


def test_probes_ask_for_routes_that_are_there_and_the_health_check_tells(servers):
    server = servers("one")
    routes = server.ask("GET", "/openapi.json")[2]["paths"].keys()
    probes = [container[f"{kind}Probe"] for _, container in pods() for kind in ("startup", "liveness", "readiness")]
    asked = {probe["httpGet"]["path"] for probe in probes} | set(re.findall(r"GET (/\w+)", BALANCER))
    assert asked <= routes, asked - routes
    program, *words = instruction("HEALTHCHECK")
    assert program == "python"
    for port, healthy in ((server.port, True), (9, False)):
        done = subprocess.run([sys.executable, *words], env={**os.environ, "PORT": str(port)}, capture_output=True)
        assert (done.returncode == 0) == healthy, done.stderr


def predictions(server: Tiny) -> int:
    """How many a server has answered."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return sum(int(n) for n in re.findall(r'^http_requests_total\{path="/predict".*\} (\d+)', text, re.MULTILINE))


class Balancer:
    """The real HAProxy under deploy/haproxy.cfg, on a port of its own and with two servers that a test has started."""

    def __init__(self, folder: Path, ports: list[int]):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.log = self.socket.getsockname()[1], folder / "haproxy.log"
        os.set_inheritable(self.socket.fileno(), True)
        config = BALANCER.replace("bind :8080", f"bind fd@{self.socket.fileno()}")
        config = re.sub(r"bind :(\d+)", rf"bind unix@{folder}/\1", config)
        for number, port in enumerate(ports, 1):
            config = config.replace(f"vision-{number}:8080", f"127.0.0.1:{port}")
        config = re.sub(r"(timeout \S+) +\d+s", r"\1 600s", config)
        config = re.sub(r"server (\S+) \1:", r"server \1 127.0.0.1:", config)
        (folder / "haproxy.cfg").write_text(config)
        command = ["haproxy", "-f", str(folder / "haproxy.cfg")]
        checked = subprocess.run([*command, "-c"], capture_output=True, text=True, pass_fds=[self.socket.fileno()])
        assert (checked.returncode, "WARNING" in checked.stderr) == (0, False), checked.stderr
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[self.socket.fileno()])

    def ask(self, path: str, item: str) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("POST", path, json.dumps({"x": item}))
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text.startswith(b"{") else {}
        finally:
            connection.close()

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self.socket.close()


@pytest.mark.haproxy
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed (Debian: haproxy)")
def test_haproxy_loses_no_request_at_a_rolling_restart(servers, tmp_path):
    both = [servers(name) for name in ("one", "two")]
    ports, done, answers = [server.port for server in both], threading.Event(), []
    balancer = Balancer(tmp_path, ports)

    def load(item: str):
        while not done.is_set():
            try:
                answers.append(balancer.ask("/predict", item))
            except (OSError, http.client.HTTPException) as error:
                answers.append((0, {"error": repr(error)}))

    # the last one is as long as a photo
    users = [threading.Thread(target=load, args=(item,)) for item in ("1", "2", "0" * 600_000 + "3")]
    try:
        wait_until(lambda: balancer.ask("/predict", "1")[0] == 200, "HAProxy has a server")
        for user in users:
            user.start()
        for name, port, server in zip(("one", "two"), ports, both, strict=True):
            before = len(answers)
            wait_until(lambda before=before: len(answers) > before + 50, "requests are under way")
            assert server.stop() == 0
            before = len(answers)
            wait_until(lambda before=before: len(answers) > before + 50, "the other one answers")
            server.close()
            again = servers(name, port)
            wait_until(lambda again=again: predictions(again) > 0, "it gets requests again")
        assert balancer.ask("/rollout/promote", "1")[0] == 403
        assert balancer.ask("/admin/reload", "1")[0] == 403
    finally:
        done.set()
        for user in users:
            user.join()
        balancer.close()
    assert {status for status, _ in answers} == {200}, [answer for answer in answers if answer[0] != 200][:3]
    assert {answer["pred"] for _, answer in answers} == {2.0, 4.0, 6.0}
    assert [(tmp_path / name / "stderr.txt").read_text() for name in ("one", "two")] == ["", ""]
