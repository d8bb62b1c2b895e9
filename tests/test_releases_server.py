"""Servers that load releases by name, and take up what the registry decides."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager

import pytest

from common import rollout
from common.log import file_sha256
from common.releases import Releases, served_file
from common.rollout_control import make_control
from common.server_flags import add_server_flags
from tests.conftest import ROOT, python, second_run
from tests.tiny_server import wait_until


@pytest.fixture
def store(tmp_path):
    return Releases(tmp_path / "registry")


def test_a_server_loads_by_name_and_takes_up_a_promotion(store, scored_run, tmp_path, colour_photos):
    store.register(scored_run)
    new = store.register(second_run(scored_run, tmp_path))
    store.promote("vision@1", override="first")
    command = [sys.executable, "-m", "project_vision_cls.serve", "--model", "vision@production"]
    command += ["--registry", store.folder, "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            url = process.stdout.readline().split()[-1]
            assert process.stdout.readline().strip() == f"ready with model {file_sha256(scored_run / 'best.pt')[:12]}"
            store.promote("vision@2", override="second")
            process.send_signal(signal.SIGHUP)
            assert "took over" in process.stderr.readline()
            with urllib.request.urlopen(f"{url}/health", timeout=60) as reply:
                assert json.load(reply)["model_id"] == new["sha256"][:12]
        finally:
            drain = threading.Thread(target=process.stderr.read)
            drain.start()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
            drain.join()


def two_releases(store, scored_run, tmp_path, stage: str) -> tuple[dict, dict]:
    """vision@1, at a stage, and vision@2, whose gate was passed."""
    old, new = store.register(scored_run), store.register(second_run(scored_run, tmp_path))
    store.promote("vision@1", stage, override="first")
    verdict = {"project": "vision", "sha256": new["sha256"], "passed": True, "checks": [], "files": new["files"]}
    (tmp_path / "gate.json").write_text(json.dumps({**verdict, "baseline": old["sha256"]}))
    store.record_gate(tmp_path / "gate.json", verdict)
    return old, new


def serving(store, tmp_path, *flags: str) -> list[str]:
    (tmp_path / "token").write_text("a-token-of-32-characters-or-more")
    words = ["--registry", store.folder, "--port", "0", "--admin_token_file", tmp_path / "token", *flags]
    return list(map(str, words))


@contextmanager
def served(words, folder):
    """The address of the photo server, with a way to send it a POST with its token."""
    command = [sys.executable, "-m", "project_vision_cls.serve", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        url = process.stdout.readline().split()[-1]
        assert process.stdout.readline().startswith("ready with model ")
        token = {"Authorization": f"Bearer {(folder / 'token').read_text()}"}

        def post(path: str) -> dict:
            request = urllib.request.Request(url + path, b"", token)
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)

        yield url, post
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, (folder / "log").read_text()
        process.stdout.close()


def told(store) -> str:
    return json.loads((store.folder / "rollout-vision.json").read_text())["told"]


def started(words) -> tuple[argparse.Namespace, dict]:
    """What a start with these flags would serve, and the state of its rollout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ckpt", default="")
    add_server_flags(parser, 8080)
    args = parser.parse_args(words)
    return args, make_control(args, lambda split: None).asked("rollout", None)


@pytest.mark.parametrize(
    ("workers", "stage", "canary"), [("1", "staging", "other0/best.pt"), ("2", "production", "vision@latest")]
)
def test_the_registry_decides_after_a_promotion_that_it_was_told_of(
    store, scored_run, tmp_path, workers, stage, canary, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    old, new = two_releases(store, scored_run, tmp_path, stage)
    name = f"vision@{stage}"
    words = serving(store, tmp_path, "--model", name, "--workers", workers, "--canary", canary)
    with served(words, tmp_path) as (url, post):
        store.register(second_run(scored_run, tmp_path, extra="a third"))  # @latest has moved
        assert rollout.ask(url, "promote", (tmp_path / "token").read_text())["status"] == "promoted"
        wait_until(lambda: told(store), "the registry has taken it")
        assert store.resolve(name)["version"] == 2
        assert [e["override"] for e in store.history.read() if e["action"] == "promote"] == ["first", None]
        assert post("/admin/reload")["model_id"] == new["sha256"][:12]
        words += ["--canary", "vision@2"]  # which it was, by its content or by what @latest meant
        assert started(words)[1]["status"] == "promoted"
        store.rollback("vision", stage)
        assert post("/admin/reload")["model_id"] == old["sha256"][:12]
        assert rollout.ask(url, "status")["status"] == "rolled_back"
    for _ in range(2):  # nor is the candidate rolled out anew
        args, about = started(words)
        assert (served_file(args), about["status"]) == (str(store.checkpoint("vision@1")), "rolled_back")
    assert about["why"] == f"{name} is another model now"
    store.promote("vision@2", stage)
    args, about = started(words)
    assert (served_file(args), about["status"]) == (str(store.checkpoint("vision@2")), "promoted")


def test_a_promotion_that_the_registry_refused_binds(store, scored_run, tmp_path):
    store.register(scored_run), store.register(second_run(scored_run, tmp_path))
    store.promote("vision@1", override="first")
    words = serving(store, tmp_path, "--model", "vision@production", "--canary", "vision@2")
    with served(words, tmp_path) as (url, post):
        assert rollout.ask(url, "promote", (tmp_path / "token").read_text())["status"] == "promoted"
        wait_until(lambda: "the registry refused: vision@2" in (tmp_path / "log").read_text(), "it is told")
        wait_until(lambda: "took over" in (tmp_path / "log").read_text(), "the candidate is served")
        assert "by hand; the registry refused: vision@2 → production" in rollout.ask(url, "status")["why"]
        assert store.resolve("vision@production")["version"] == 1
        assert post("/admin/reload")["model_id"] == store.resolve("vision@2")["sha256"][:12]
    args, about = started(words)
    assert (served_file(args), about["status"]) == (str(store.checkpoint("vision@2")), "promoted")


def test_a_server_refuses_a_changed_release(store, scored_run, tmp_path):
    store.register(scored_run)
    path = store.checkpoint("vision@1")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"\0")
    done = python(
        "project_vision_cls.serve", "--model", "vision@1", "--registry", store.folder, "--port", 0, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "so it was changed; roll back" in done.stderr
