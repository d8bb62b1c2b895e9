"""A checkpoint that is damaged, foreign or dangerous is refused in words."""

import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from common.amp_ckpt import CheckpointError, load_ckpt, save_ckpt
from common.cli import UserError
from tests.checkpoints import ckpt, no_cuda, same


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["torch zip", "replaced data.pkl", "plain pickle"])
def test_a_pickle_bomb_does_not_go_off(tmp_path, kind):
    path, mark = tmp_path / "best.pt", tmp_path / "mark"
    if kind == "torch zip":
        torch.save({**ckpt(), "format": 1, "config": Bomb(mark)}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"format": 1, "x": Bomb(mark)}))
    else:
        save_ckpt(tmp_path / "good.pt", ckpt())
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                bomb = pickle.dumps(Bomb(mark), protocol=2)
                bad.writestr(name, bomb if name.endswith("data.pkl") else good.read(name))
    words = "another kind of file" if kind == "plain pickle" else "pickled objects, which can run code .*system"
    with pytest.raises(CheckpointError, match=rf"best\.pt: .*{words}"):
        load_ckpt(path)
    assert not mark.exists()
    if kind == "torch zip":  # the bomb is a real one
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_a_device_is_no_checkpoint():
    with pytest.raises(CheckpointError, match="/dev/zero: cannot be read \\(not a regular file\\)"):
        load_ckpt("/dev/zero")


def test_a_cut_file_is_refused_at_every_length(tmp_path):
    path, cut = tmp_path / "best.pt", tmp_path / "cut.pt"
    save_ckpt(path, ckpt())
    data = path.read_bytes()
    for length in [*range(0, len(data), 7), *range(len(data) - 60, len(data))]:
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=rf"cut\.pt: {length} bytes that are not a whole checkpoint"):
            load_ckpt(cut)


def test_a_flipped_byte_is_refused_or_harmless(tmp_path):
    path, flipped = tmp_path / "best.pt", tmp_path / "flipped.pt"
    save_ckpt(path, ckpt())
    data, wanted = path.read_bytes(), load_ckpt(path)
    refused, rng = 0, random.Random(0)
    for place in rng.sample(range(len(data)), 600) + list(range(len(data) - 300, len(data))):
        flipped.write_bytes(data[:place] + bytes([data[place] ^ rng.choice([1, 8, 128, 255])]) + data[place + 1 :])
        try:
            held = load_ckpt(flipped)
        except CheckpointError as error:  # any other exception fails the test
            assert str(error).startswith(f"{flipped}: ")  # noqa: PT017
            refused += 1
        else:
            assert same(held, wanted), place
    assert refused > 300


def test_a_damaged_directory_cannot_change_weights(tmp_path):
    """A flag bit of one entry, at which torch alone reads that entry's weights as whatever lay in memory."""
    path = tmp_path / "best.pt"
    save_ckpt(path, ckpt())
    data, wanted = bytearray(path.read_bytes()), load_ckpt(path)
    entry = data.rindex(b"archive/data/0" if b"archive/data/0" in data else b"/data/0") - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    for place in range(entry + 4, entry + 46):
        for mask in (1, 255):
            data[place] ^= mask
            path.write_bytes(data)
            data[place] ^= mask
            try:
                held = load_ckpt(path)
            except CheckpointError:
                continue
            assert same(held, wanted), (place - entry, mask)


def write_with(path: Path, **changes: object) -> Path:
    torch.save({k: v for k, v in (ckpt() | {"format": 1} | changes).items() if v is not Ellipsis}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"project": "nlp"}, "a checkpoint of project 'nlp', wanted 'vision'; use that project's commands"),
        ({"format": 2}, "format 2, this code reads format 1; use the release that wrote it, or update this one"),
        ({"format": torch.ones(2)}, r"format tensor\(.*, this code reads format 1"),
        ({"format": True}, "format True, this code reads format 1"),
        ({"format": ...}, "found no 'format' key, so not written by save_ckpt"),
        ({"golden": ..., "assets": ...}, "lacks assets, golden; wanted project, .*: train again"),
    ],
)
def test_wrong_contents(tmp_path, changes, words):
    with pytest.raises(CheckpointError, match=rf"a\.pt: {words}"):
        load_ckpt(write_with(tmp_path / "a.pt", **changes), project="vision")


def test_other_files(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(ckpt(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("dear reader\n" * 100)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "text")
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10**6)
    for name, words in {
        "list.pt": "no 'format' key",
        "legacy.pt": "not a whole checkpoint",
        "empty.pt": "0 bytes that are not a whole checkpoint",
        "text.pt": "1200 bytes that are not a whole checkpoint .*copy it again or train again",
        "zip.pt": "damaged, or not written by save_ckpt",
        "packed.pt": "archive/data.pkl is compressed",
        ".": r"cannot be read \(Is a directory\); wanted a file such as best.pt",
        "text.pt/a.pt": r"cannot be read \(Not a directory\)",
        "none.pt": "no such file; train first, or pass the --ckpt of a finished run",
    }.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            load_ckpt(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission_to_read(tmp_path):
    save_ckpt(tmp_path / "a.pt", ckpt())
    (tmp_path / "a.pt").chmod(0)
    with pytest.raises(CheckpointError, match=r"a\.pt: cannot be read \(Permission denied\)"):
        load_ckpt(tmp_path / "a.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there_is_not_the_files_fault(tmp_path):
    save_ckpt(tmp_path / "a.pt", ckpt())
    with pytest.raises(UserError, match=r"device cuda: not on this machine .*; pass --device cpu"):
        load_ckpt(tmp_path / "a.pt", device="cuda")


@pytest.mark.cuda
@no_cuda
def test_saved_on_cuda_loads_on_cpu_and_back(tmp_path):
    held = ckpt(model={"w": torch.randn(3, device="cuda")})
    save_ckpt(tmp_path / "a.pt", held)
    assert torch.equal(load_ckpt(tmp_path / "a.pt")["model"]["w"], held["model"]["w"].cpu())
    assert load_ckpt(tmp_path / "a.pt", device="cuda")["model"]["w"].is_cuda
