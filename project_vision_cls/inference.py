"""python -m project_vision_cls.inference --ckpt runs/vision/best.pt --input_dir data/vision/test

Reads every photo under --input_dir, in the order of the names, folder by folder; writes one CSV row a file
(`path, pred, label, prob, status, model_id`) to --out_csv, also for files that cannot be read. The rows grow in
`<out_csv>.partial`, which becomes --out_csv at the end; after an interruption, the same command with --resume goes on.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.amp_ckpt import CheckpointError, check_device, exact_fp32, load_ckpt
from common.cli import UserError, check_flag, command_parser, number, run
from common.log import Progress, file_sha256
from common.partial import partial_of, whole_rows
from project_vision_cls.data import to_input
from project_vision_cls.decode import PhotoError, decode
from project_vision_cls.model import build_model
from project_vision_cls.scan import HIDDEN, SUFFIXES

COLUMNS = ["path", "pred", "label", "prob", "status", "model_id"]
CHUNK = 8  # batches decoded at a time


class Predictor:
    """A trained model with all it needs to turn photos into answers; evaluation, inference and serving share it.

    assets: classes (names in label order), normaliser (mean, std), img_size (pixels), temperature, and mirror: whether
    the answer is the mean over the photo and its mirror image.
    """

    def __init__(self, model: torch.nn.Module, assets: dict, device: str | torch.device = "cpu", model_id: str = ""):
        exact_fp32()
        self.model = model.eval().to(device, memory_format=torch.channels_last)
        self.assets, self.device, self.model_id = assets, torch.device(device), model_id
        self.classes, self.img_size = assets["classes"], assets["img_size"]
        self.golden: dict | None = None
        self.reference: dict = {}
        self.version = self.data_version = ""

    @classmethod
    def load(cls, ckpt: str | Path, device: str | torch.device = "cpu") -> Predictor:
        """Rebuild from a checkpoint; raises CheckpointError where that cannot be done."""
        check_device(device)
        held = load_ckpt(ckpt, project="vision")  # on the CPU: only the weights go to the device
        model = build_model(held["config"], len(held["assets"]["classes"]))
        try:
            model.load_state_dict(held["model"])
        except RuntimeError as error:
            raise CheckpointError(f"{ckpt}: the weights do not fit the config beside them ({error})") from error
        predictor = cls(model, held["assets"], device, model_id=file_sha256(ckpt)[:12])
        predictor.golden, predictor.reference = held["golden"], held["reference"]
        # when it was trained, in a form that may be part of a URL
        predictor.version = re.sub("[-:]", "", held["provenance"]["utc"]).partition("+")[0]
        predictor.data_version = held["provenance"]["data_version"]
        return predictor

    @property
    def example(self) -> np.ndarray:
        """A decoded photo for warm-up, (S, S, 3) uint8."""
        return np.zeros((self.img_size, self.img_size, 3), np.uint8)

    def decode(self, photo: str | Path | bytes | Image.Image) -> np.ndarray:
        """Path, file content or PIL image → (S, S, 3) uint8. Raises PhotoError with the reason."""
        return decode(photo, self.img_size)

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 → (B, C) float32 on the CPU, before temperature."""
        normaliser = self.assets["normaliser"]
        x = to_input(pixels.to(self.device), normaliser["mean"], normaliser["std"])
        if not self.assets["mirror"]:
            return self.model(x).float().cpu()
        looks = torch.stack([self.model(x), self.model(x.flip(3))]).float().log_softmax(2)
        return (looks.logsumexp(0) - math.log(2)).cpu()  # log of the mean probability

    @torch.inference_mode()
    def embed(self, rows: list[np.ndarray]) -> Tensor:
        """Decoded photos → (B, channels) float32 on the CPU: what the model makes of them before it decides."""
        normaliser, parts = self.assets["normaliser"], [rows[start : start + 64] for start in range(0, len(rows), 64)]
        inputs = (torch.from_numpy(np.stack(part)).to(self.device) for part in parts)
        found = [self.model.embed(to_input(x, normaliser["mean"], normaliser["std"])) for x in inputs]
        return torch.cat(found).float().cpu()

    def probabilities(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 → (B, C) calibrated probabilities, in float64 so that equal inputs give equal digits."""
        return (self.logits(pixels).double() / self.assets["temperature"]).softmax(dim=1)

    def predict_rows(self, rows: list[np.ndarray]) -> list[dict]:
        """Decoded photos, in one forward pass → one answer each: pred, label, prob and the `top` five."""
        probs = self.probabilities(torch.from_numpy(np.stack(rows)))
        top = probs.topk(min(5, len(self.classes)), dim=1)
        return [self._answer(p, c) for p, c in zip(top.values.tolist(), top.indices.tolist(), strict=True)]

    def _answer(self, probs: list[float], classes: list[int]) -> dict:
        names = [self.classes[c] for c in classes]
        top = [{"label": name, "prob": prob} for name, prob in zip(names, probs, strict=True)]
        return {"pred": classes[0], "label": names[0], "prob": probs[0], "top": top}

    def predict(self, photos: list[str | Path | bytes | Image.Image]) -> list[dict]:
        """Photos → answers in the same order, 64 at a time. Raises PhotoError for the first that cannot be read."""
        parts = (photos[start : start + 64] for start in range(0, len(photos), 64))
        return [answer for part in parts for answer in self.predict_rows([self.decode(photo) for photo in part])]

    def check_golden(self) -> None:
        """Replay the inputs stored at the end of training; raises CheckpointError where the answers moved."""
        if self.golden is None:
            raise CheckpointError("this predictor holds no golden inputs; load it from a checkpoint")
        moved = (self.probabilities(self.golden["pixels"]) - self.golden["probs"]).abs().max().item()
        if not moved <= 1e-3:
            raise CheckpointError(
                f"golden replay: probabilities moved by {moved:.2g}, at most 0.001 is wanted; the weights or the code "
                "are not those of the training run: train again or go back to the release that wrote the checkpoint"
            )


def walk_photos(root: Path, passed_over: Counter[str] | None = None, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Photos under `root` in a stable order, one folder's names in memory at a time.

    Hidden names are passed over, and so is a link back to a folder above; other files are counted in `passed_over` by
    suffix. A folder that cannot be opened comes as itself, to get its row with the reason.
    """
    real = os.path.realpath(root)
    if real in above:
        return
    try:
        with os.scandir(root) as entries:
            listed = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(HIDDEN))
    except OSError:
        yield root
        return
    for name, is_dir in listed:
        if is_dir:
            yield from walk_photos(root / name, passed_over, (*above, real))
        elif name.lower().endswith(SUFFIXES):
            yield root / name
        elif passed_over is not None:
            passed_over[Path(name).suffix.lower() or "no suffix"] += 1


def predict_files(predictor: Predictor, files: Iterable[Path], bs: int) -> Iterator[tuple[Path, dict, str]]:
    """(file, answer, status) for each file, in order; a file that cannot be read has an empty answer and the reason.

    Photos are decoded on threads: beside a GPU the next batch while the model works on this one; on the CPU, where both
    want the same cores, CHUNK batches and then the model.
    """
    files, beside = iter(files), torch.device(predictor.device).type != "cpu"
    size = bs if beside else CHUNK * bs

    def decoded(file: Path) -> np.ndarray | PhotoError:
        try:
            return predictor.decode(file)
        except (PhotoError, OSError) as error:
            return PhotoError(str(error))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        chunk = list(itertools.islice(files, size))
        pending = [pool.submit(decoded, file) for file in chunk]
        while chunk:
            rows = [future.result() for future in pending]
            coming = list(itertools.islice(files, size))
            if beside:
                pending = [pool.submit(decoded, file) for file in coming]
            for start in range(0, len(chunk), bs):
                part = rows[start : start + bs]
                good = [row for row in part if isinstance(row, np.ndarray)]
                answers = iter(predictor.predict_rows(good) if good else [])
                for file, row in zip(chunk[start : start + bs], part, strict=True):
                    yield (file, {}, str(row)) if isinstance(row, PhotoError) else (file, next(answers), "ok")
            if not beside:
                pending = [pool.submit(decoded, file) for file in coming]
            chunk = coming


def write_csv(
    predictor: Predictor, files: Iterable[Path], root: Path | None, out_csv: Path, bs: int, resume: bool
) -> int:
    """One row a file to `out_csv`; returns the number of rows. Paths are relative to `root`, or as given without one.

    Raises UserError where there is no file at all; an earlier `out_csv` then stays.
    """
    partial = partial_of(out_csv)
    files, done = iter(files), 0
    if resume and partial.exists():
        done = _skip_done(partial, files, root, predictor.model_id)
    progress = Progress(0, "predicting")
    mode = "a" if done else "w"
    with open(partial, mode, newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        if not done:
            table.writerow(COLUMNS)
        for path, answer, status in predict_files(predictor, files, bs):
            values = [answer.get("pred", ""), answer.get("label", ""), answer.get("prob", "")]
            table.writerow([_shown(path, root), *values, status, predictor.model_id])
            done += 1
            progress.update(1)
    progress.close()
    if not done:
        partial.unlink()
        raise UserError(f"{root or 'the list'}: no photos found ({', '.join(SUFFIXES)}); nothing was written")
    os.replace(partial, out_csv)
    return done


def _shown(path: Path, root: Path | None) -> str:
    return path.relative_to(root).as_posix() if root else str(path)


def _skip_done(partial: Path, files: Iterator[Path], root: Path | None, model_id: str) -> int:
    """Cut a torn last row off, and step `files` over the rows that are there. Returns their number."""
    done, whole = 0, 0
    for row, size in whole_rows(partial):
        if len(row) != len(COLUMNS):
            break
        if row != COLUMNS:
            expected = next(files, None)
            if expected is None or row[0] != _shown(expected, root) or row[-1] != model_id:
                raise UserError(
                    f"{partial}: row {done + 1} is {row[0]!r} by model {row[-1]}, wanted {expected} by model "
                    f"{model_id}; the files or the model changed since: run without --resume to start over"
                )
            done += 1
        whole = size
    os.truncate(partial, whole)
    return done


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", default="runs/vision/best.pt", help="checkpoint of a finished training")
    add("--input_dir", default="data/vision/test", help="folder of photos, searched with its subfolders")
    add("--input_list", help="text file with one photo path a line, in place of --input_dir")
    add("--out_csv", default="runs/vision/preds.csv", help="where the predictions go")
    add("--bs", type=number(int, 1), default=64, help="photos per forward pass")
    add("--num_classes", type=int, help="checked against the checkpoint when given")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add("--resume", action=argparse.BooleanOptionalAction, default=False, help="go on with an interrupted --out_csv")
    args = parser.parse_args(argv)
    predictor = Predictor.load(args.ckpt, args.device)
    check_flag("num_classes", args.num_classes, len(predictor.classes), args.ckpt)
    passed_over: Counter[str] = Counter()
    if args.input_list:
        root, files = None, _listed(Path(args.input_list))
    else:
        root = Path(args.input_dir)
        if not root.is_dir():
            raise UserError(f"--input_dir {root}: no such folder; wanted a folder of photos ({', '.join(SUFFIXES)})")
        files = walk_photos(root, passed_over)
    rows = write_csv(predictor, files, root, Path(args.out_csv), args.bs, args.resume)
    print(f"{rows} photos → {args.out_csv}")
    if passed_over:
        print(f"passed over {', '.join(f'{n} {suffix}' for suffix, n in sorted(passed_over.items()))} files")


def _listed(path: Path) -> Iterator[Path]:
    """The paths of a list, one a line; UserError at once where there is no such file."""
    if not path.is_file():
        raise UserError(f"--input_list {path}: no such file; wanted one photo path a line")

    def lines() -> Iterator[Path]:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            yield from (Path(line.rstrip("\n").removesuffix("\r")) for line in file if line.strip())

    return lines()


if __name__ == "__main__":
    run(main)
