"""Releases: copies that never change, and a history that shows any edit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from common.ckpt_file import CheckpointError, read_whole
from common.cli import UserError
from common.history import History, RegistryError
from common.log import file_sha256
from common.releases import Releases
from tests.conftest import ROOT, second_run


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
