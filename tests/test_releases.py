"""Releases: copies that never change, a history that shows any edit, and servers that load by name."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager

import pytest

from common import rollout
from common.ckpt_file import CheckpointError, read_whole
from common.cli import UserError
from common.history import History, RegistryError
from common.log import file_sha256
from common.releases import Releases, served_file
from common.rollout_control import make_control
from common.server_flags import add_server_flags
from tests.conftest import ROOT, python, second_run
from tests.test_server_microbatch import wait_until


@pytest.fixture
def store(tmp_path):
    return Releases(tmp_path / "registry")


def test_register_promote_and_roll_back(store, scored_run, tmp_path):
    first = store.register(scored_run)
    assert store.register(scored_run) == first  # the same files keep their version
    second = store.register(second_run(scored_run, tmp_path))
    assert [release["version"] for release in (first, second)] == [1, 2]
    with pytest.raises(RegistryError, match=r"vision@1 → production: refused: no gate was run for the SHA-256"):
        store.promote("vision@1")
    assert store.promote("vision@1", override="the first one")["override"] == "the first one"
    store.promote("vision@2", override="a try")
    assert store.resolve("vision@production")["version"] == 2
    assert store.rollback("vision", reason="it drifts")["version"] == 1
    assert store.resolve("vision@production") == store.resolve("vision@1") == first
    with pytest.raises(RegistryError, match="there is no release before this one"):
        store.rollback("vision")
    assert [(entry["action"], entry.get("version")) for entry in store.history.read()] == [
        ("register", 1), ("register", 2), ("promote", 1), ("promote", 2), ("rollback", 1),
    ]  # fmt: skip
    path = store.checkpoint("vision@production")
    assert path.name == f"{file_sha256(scored_run / 'best.pt')}.pt"
    assert path.read_bytes() == (scored_run / "best.pt").read_bytes()


@pytest.mark.parametrize("name", ["vision@9", "nlp@latest", "vision", "vision@", "../x@1", "vision@staging"])
def test_names_that_are_not_there(store, scored_run, name):
    store.register(scored_run)
    with pytest.raises(RegistryError, match=r"wanted a name such as|not in .*, which has"):
        store.resolve(name)


@pytest.mark.parametrize("missing", ["run.json", "metrics.json", "data_files.csv"])
def test_an_unfinished_run_is_not_registered(store, scored_run, tmp_path, missing):
    run = shutil.copytree(scored_run, tmp_path / "run")
    (run / missing).unlink()
    with pytest.raises(UserError, match=f"lacks {missing}; train and evaluate first"):
        store.register(run)


def test_a_run_without_an_evaluation_is_not_registered(store, scored_run, tmp_path):
    run = shutil.copytree(scored_run, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "eval": {}}))
    with pytest.raises(
        UserError, match=r"holds no evaluation; run python -m project_vision_cls\.eval --ckpt .*best\.pt"
    ):
        store.register(run)


def test_a_checkpoint_of_another_run_is_not_registered(store, scored_run, tmp_path):
    run = second_run(scored_run, tmp_path)
    shutil.copy(scored_run / "run.json", run / "run.json")
    with pytest.raises(UserError, match=r"run\.json names .*: the files are not of one run"):
        store.register(run)


def edit_line(path, number, old, new):
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new)
    path.write_bytes(b"".join(lines))


EDITS = {
    "an old line": lambda path, head: edit_line(path, 0, b'"version": 1', b'"version": 7'),
    "the last line": lambda path, head: edit_line(path, -1, b"urgent", b"tested"),
    "a line taken out": lambda path, head: path.write_bytes(b"".join(path.read_bytes().splitlines(True)[1:])),
    "the last line cut off": lambda path, head: path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:-1])),
    "the last line torn": lambda path, head: path.write_bytes(path.read_bytes()[:-9]),
    "two lines changed places": lambda path, head: path.write_bytes(b"".join(path.read_bytes().splitlines(True)[::-1])),
    "a line added by hand": lambda path, head: path.write_bytes(path.read_bytes() + b'{"action": "promote"}\n'),
    "the head torn": lambda path, head: head.write_bytes(head.read_bytes()[:20]),
    "the head of another state": lambda path, head: head.write_text('{"lines": 1, "sha256": "00"}'),
    "the history gone": lambda path, head: path.unlink(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_history_is_refused(store, scored_run, edit):
    store.register(scored_run)
    store.promote("vision@1", override="urgent")
    EDITS[edit](store.history.path, store.history.head)
    for ask in (lambda: store.checkpoint("vision@production"), lambda: store.register(scored_run)):
        with pytest.raises(RegistryError, match=r"edited|cut off|torn"):
            ask()


def test_what_a_crash_leaves_is_mended(store):
    history = store.history
    with history.locked():
        history.append({"action": "a"})
        kept = history.head.read_bytes()
        history.append({"action": "b"})
    history.head.write_bytes(kept)  # killed between the line and the head
    assert [entry["action"] for entry in history.read()] == ["a", "b"]
    with open(history.path, "ab") as file:
        file.write(b'{"number": 3, "action"')  # killed inside a line
    assert len(history.read()) == 2
    with history.locked():
        history.append({"action": "c"})
    assert [entry["action"] for entry in history.read()] == ["a", "b", "c"]


def test_processes_that_write_at_once_wait_for_each_other(tmp_path):
    code = (
        "import sys; from common.history import History; history = History(sys.argv[1])\n"
        "for i in range(20):\n    with history.locked(): history.append({'action': sys.argv[2], 'i': i})\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, tmp_path / "registry"]
    writers = [subprocess.Popen([*command, str(number)], env=env) for number in range(2)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    entries = History(tmp_path / "registry").read()
    assert [entry["number"] for entry in entries] == list(range(1, 41))
    for number in range(2):
        assert [entry["i"] for entry in entries if entry["action"] == str(number)] == list(range(20))


def test_changed_copies_are_refused(store, scored_run):
    release = store.register(scored_run)
    path = store.checkpoint("vision@1")
    assert not os.access(path, os.W_OK) or os.getuid() == 0  # root may write anything
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RegistryError, match=r"its content has the SHA-256 .*, so it was changed; roll back"):
        store.checkpoint("vision@1")
    with pytest.raises(CheckpointError, match="so it was changed"):  # also where somebody loads it by its path
        read_whole(path)
    store.register(scored_run)  # the same files: nothing to do, and nothing is hidden
    path.unlink()
    with pytest.raises(RegistryError, match="is gone; put it back from a copy"):
        store.checkpoint("vision@1")
    with pytest.raises(RegistryError, match="is gone"):
        store.promote("vision@1", override="a reason does not mend a file")
    assert release["sha256"] == file_sha256(scored_run / "best.pt")


def test_the_commands(store, scored_run, registry):
    place = ["--store", store.folder]
    assert registry("register", scored_run, *place) == (0, "vision@1\n")
    code, out = registry("promote", "vision@1", *place)
    assert (code, out[:8]) == (1, "refused:")
    code, out = registry("promote", "vision@1", "--override", "first", *place)
    assert (code, out[:34]) == (0, "vision@production is now vision@1,")
    code, out = registry("list", "--history", *place)
    assert out.splitlines()[0].split()[-1] == "production"
    assert json.loads(out.splitlines()[-1])["override"] == "first"
    assert registry("resolve", "vision@production", *place) == (0, f"{store.checkpoint('vision@1')}\n")
    code, out = registry("rollback", "vision", *place)
    assert (code, "there is no release before this one" in out) == (1, True)


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
