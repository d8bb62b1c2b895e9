"""What a run's data was, what changed since, and that edited records are noticed."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from common import data_versions
from common.cli import UserError
from common.data_versions import compare, of_folder, present, read_manifest, recorded, snapshot_of, tell_changes, told
from common.log import version_of
from common.run_record import record_run
from tests.conftest import make_colour_photos, python


@pytest.fixture
def run_and_data(tmp_path, colour_run):
    """A trained run whose data may be changed: the data is drawn again, byte for byte."""
    run = shutil.copytree(colour_run, tmp_path / "run")
    make_colour_photos(tmp_path / "photos", {"train": 20, "val": 8, "test": 6})
    manifest = read_manifest(run)
    manifest["roots"] = {split: str(tmp_path / "photos" / split) for split in ("train", "val")}
    (run / "data_manifest.json").write_text(json.dumps(manifest))
    return run, tmp_path / "photos"


def test_nothing_changed(run_and_data, capsys):
    run, photos = run_and_data
    found = compare(recorded(run), present(run))
    assert found["same"]
    assert found["a"]["files"] == found["b"]["files"] == 3 * (20 + 8)
    assert tell_changes(run) is None
    assert capsys.readouterr().out == ""
    assert told(found) == [f"the same data: 84 files, version {recorded(run).version[:12]}"]
    assert of_folder(photos).classes["red"] == {"train": 20, "val": 8, "test": 6}


def test_what_came_went_changed_and_moved_and_the_class_mix(run_and_data, capsys):
    run, photos = run_and_data
    shutil.copy(photos / "test/red/0.png", photos / "train/red/new.png")
    (photos / "train/red/notes.txt").write_text("of another kind, so not data")
    (photos / "train/stray.png").write_bytes(b"outside the class folders")
    (photos / "train/blue/1.png").unlink()
    (photos / "train/blue/2.png").unlink()
    (photos / "val/green/3.png").rename(photos / "val/blue/moved.png")
    (photos / "val/green/4.png").write_bytes(b"another photo")
    found = compare(recorded(run), present(run))
    assert not found["same"]
    assert found["came"] == ["train/red/new.png"]
    assert found["went"] == ["train/blue/1.png", "train/blue/2.png"]
    assert found["changed"] == ["val/green/4.png"]
    assert found["moved"] == [["val/green/3.png", "val/blue/moved.png"]]
    assert {kind: (row["a"], row["b"]) for kind, row in found["classes"].items()} == {
        "blue": (28, 27),
        "green": (28, 27),
        "red": (28, 29),
    }
    assert found["classes"]["red"]["share_b"] == pytest.approx(29 / 83)
    assert tell_changes(run)["came"] == found["came"]
    out = capsys.readouterr().out
    assert out.startswith("the data changed since this run was trained:\n  84 → 83 files, version ")
    assert "class red: 28 → 29 files, 34.9% (+1.6 points)" in out


def test_a_file_of_the_same_size_and_time_is_found_by_verify(run_and_data, colour_run):
    run, photos = run_and_data
    with open(run / "data_files.csv") as file:
        text = file.read()
    path = photos / "train/red/5.png"
    stat = path.stat()
    row = next(line for line in text.splitlines() if line.startswith("train,red/5.png,"))
    cells = row.split(",")
    cells[4:6] = [str(stat.st_size), str(stat.st_mtime_ns)]  # as if this very file had been hashed
    (run / "data_files.csv").write_text(text.replace(row, ",".join(cells)))
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert compare(recorded(run), present(run))["same"]
    assert compare(recorded(run), present(run, verify=True))["changed"] == ["train/red/5.png"]


def test_unchanged_files_are_not_read_again(colour_run, monkeypatch):
    monkeypatch.setattr(data_versions, "file_sha256", lambda path: pytest.fail(f"{path} was read"))
    assert compare(recorded(colour_run), present(colour_run))["same"]


def test_held_out_photos_of_one_folder(tmp_path):
    make_colour_photos(tmp_path, {"train": 10})
    flags = ["--epochs", 1, "--bs", 8, "--width", 4, "--cache_dir", tmp_path / "cache", "--run_dir", tmp_path / "run"]
    done = python("project_vision_cls.train", "--train_root", tmp_path / "train", *flags)
    assert done.returncode == 0, done.stderr
    assert compare(recorded(tmp_path / "run"), present(tmp_path / "run", verify=True))["same"]
    (tmp_path / "train/red/0.png").write_bytes(b"cut")
    scored = python("project_vision_cls.eval", "--ckpt", tmp_path / "run/best.pt", "--cache_dir", tmp_path / "cache")
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout.startswith("the data changed since this run was trained:")
    assert "changed (1): " in scored.stdout


def test_a_folder_that_is_gone_is_named(run_and_data):
    run, photos = run_and_data
    shutil.rmtree(photos / "val")
    found = compare(recorded(run), present(run))
    assert found["missing"] == [str(photos / "val")]
    assert len(found["went"]) == 24
    assert f"not there: {photos / 'val'}" in told(found)


@pytest.mark.parametrize("kind", ["file row", "hash", "version", "torn manifest", "torn table", "no table"])
def test_edited_records_are_refused(run_and_data, kind):
    run, _ = run_and_data
    table, manifest = run / "data_files.csv", run / "data_manifest.json"
    if kind == "file row":
        table.write_text("\n".join(line for line in table.read_text().splitlines() if "red/7.png" not in line))
    elif kind == "hash":
        table.write_text(table.read_text().replace(recorded(run).files["train/red/7.png"], "f" * 64))
    elif kind == "version":
        manifest.write_text(manifest.read_text().replace(recorded(run).version, "0" * 64))
    elif kind == "torn manifest":
        manifest.write_text(manifest.read_text()[:50])
    elif kind == "torn table":
        table.write_bytes(table.read_bytes()[:-70])
    else:
        table.unlink()
    with pytest.raises(UserError, match=r"edited or torn|train again|not found"):
        recorded(run)


def test_the_command_compares_runs_folders_and_now(run_and_data, colour_run, registry):
    run, photos = run_and_data
    assert registry("data", "diff", run, colour_run) == (
        0,
        f"the same data: 84 files, version {recorded(run).version[:12]}\n",
    )
    (photos / "train/red/0.png").unlink()
    code, out = registry("data", "diff", run, "--json")
    assert (code, json.loads(out)["went"]) == (1, ["train/red/0.png"])
    code, out = registry("data", "diff", run, photos)
    assert code == 1
    assert "came (18): test/blue/0.png, " in out
    wrong = python("common.registry", "data", "diff", run, photos / "none")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_a_place_that_is_neither_run_nor_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        snapshot_of(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no files"):
        snapshot_of(str(tmp_path))


def edited(run, folder, edit):
    """A copy of a run whose data was another file of the same name."""
    other = shutil.copytree(run, folder / "other")
    manifest = read_manifest(other)
    edit(manifest)
    (other / "data_manifest.json").write_text(json.dumps(manifest))
    text = (other / "data_files.csv").read_text()
    sha256 = next(iter(recorded(run).files.values()))
    (other / "data_files.csv").write_text(text.replace(sha256, "0" * 64))
    record = json.loads((other / "run.json").read_text())
    record["files_version"] = version_of({**recorded(run).files, next(iter(recorded(run).files)): "0" * 64})
    (other / "run.json").write_text(json.dumps(record))
    return other


def test_what_moved_in_a_file_of_texts(intent_run, tmp_path, registry):
    name, of = next(iter(read_manifest(intent_run)["classes"].items()))
    train = read_manifest(intent_run)["texts"]["train"]

    def edit(manifest):
        manifest["texts"]["train"] += 7
        manifest["classes"][name]["train"] += 7
        manifest["words"]["train"] = [1, 5, 99]

    code, out = registry("data", "diff", intent_run, edited(intent_run, tmp_path, edit))
    assert code == 1
    assert f"texts.train: {train} → {train + 7}\n" in out
    assert f"class {name}: {sum(of.values())} → {sum(of.values()) + 7} texts, " in out
    assert " → 1/5/99 (least, median, most)\n" in out


def test_what_moved_in_a_file_of_rows(wave_run, tmp_path, registry):
    (name,), last = read_manifest(wave_run)["series"], "2024-03-01T00:00"
    was = read_manifest(wave_run)["series"][name]

    def edit(manifest):
        manifest["series"][name] |= {"rows": 5000, "last": last}
        manifest["series"] |= {f"new {i}": {"rows": i, "first": "a", "last": "b"} for i in range(10)}

    other = edited(wave_run, tmp_path, edit)
    code, out = registry("data", "diff", wave_run, other)
    assert code == 1
    assert f"series.{name}.rows: {was['rows']} → 5000\n" in out
    assert f"series.{name}.last: {was['last']} → {last}\n" in out
    assert "series: 24 more changes; --json has all" in out
    code, out = registry("data", "diff", wave_run, other, "--json")
    assert json.loads(out)["counts"]["series.new 3.rows"] == [None, 3]


def test_data_of_one_file_a_split(tmp_path, colour_run):
    run = shutil.copytree(colour_run, tmp_path / "run")
    manifest = read_manifest(run)
    del manifest["roots"]  # a project that reads lines of a file has none
    (run / "data_manifest.json").write_text(json.dumps(manifest))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "val")}
    for path in files.values():
        with open(path, "w") as file:
            file.write(f'{{"text": "{path}"}}\n')
    record = record_run(run, files)
    assert list(recorded(run).files) == ["train/train.jsonl", "val/val.jsonl"]
    assert compare(recorded(run), present(run, verify=True))["same"]
    assert (record["data_roots"], record["files_version"]) == (files, recorded(run).version)
    with open(files["val"], "a") as file:
        file.write('{"text": "more"}\n')
    assert compare(recorded(run), present(run))["changed"] == ["val/val.jsonl"]
    os.unlink(files["train"])
    assert present(run).missing == [files["train"]]
    assert record_run(run, {"train": files["val"], "val": files["val"]})["files_version"] == recorded(run).version
    (run / "data_files.csv").write_text((run / "data_files.csv").read_text().replace("val.jsonl", "other.jsonl"))
    with pytest.raises(UserError, match=r"run\.json says .*: one of them was edited or torn"):
        recorded(run)
