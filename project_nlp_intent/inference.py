"""python -m project_nlp_intent.inference --ckpt runs/nlp/best.pt --inp data/nlp/test.txt --out runs/nlp/preds.csv

Reads texts from --inp: .txt (one a line), .jsonl ({"text"} a line), .csv or .tsv (a column text). Writes a row for
every line, in order, also for the ones that cannot be read, as .csv or .jsonl by the suffix of --out: `line, text,
pred, label, prob, top, in_scope, truncated, status, model_id`. Memory does not grow with the file; the rows gather in
`<out>.partial`, which becomes --out at the end; after an interruption, the same command with --resume goes on.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.amp_ckpt import CheckpointError, check_device, exact_fp32, load_ckpt
from common.cli import UserError, check_flag, command_parser, number, run
from common.log import Progress, file_sha256
from common.partial import partial_of, whole_rows
from project_nlp_intent.encode import Encoded, Encoder
from project_nlp_intent.model import build_model
from project_nlp_intent.read import SUFFIXES, records
from project_nlp_intent.reject import SCORES
from project_nlp_intent.text import TextError, clean
from project_nlp_intent.watch import text_features

COLUMNS = ["line", "text", "pred", "label", "prob", "top", "in_scope", "truncated", "status", "model_id"]
SORTED = 16  # batches sorted by length together, so that short texts do not pay for the padding of long ones


class Predictor:
    """A trained model with all it needs to turn texts into answers; evaluation, inference and serving share it.

    assets: classes (names in label order), encoder (vocabulary and n-grams), temperature, reject (score, threshold).
    top_k: how many classes an answer names.
    """

    def __init__(self, model: torch.nn.Module, assets: dict, device: str | torch.device = "cpu", model_id: str = ""):
        exact_fp32()
        self.model = model.eval().to(device)
        self.assets, self.device, self.model_id = assets, torch.device(device), model_id
        self.classes, self.encoder = assets["classes"], Encoder(assets["encoder"])
        self.top_k, self.example = 5, "where is my order?"
        self.golden: dict | None = None
        self.reference: dict = {}
        self.oos_label = ""  # what truths call a text that is out of scope
        self.version = self.data_version = ""

    @classmethod
    def load(cls, ckpt: str | Path, device: str | torch.device = "cpu") -> Predictor:
        """Rebuild from a checkpoint; raises CheckpointError where that cannot be done."""
        check_device(device)
        held = load_ckpt(ckpt, project="nlp")  # on the CPU: only the weights go to the device
        assets, encoder = held["assets"], Encoder(held["assets"]["encoder"])
        model = build_model(held["config"], len(assets["classes"]), encoder)
        try:
            model.load_state_dict(held["model"])
        except RuntimeError as error:
            raise CheckpointError(f"{ckpt}: the weights do not fit the config beside them ({error})") from error
        predictor = cls(model, assets, device, model_id=file_sha256(ckpt)[:12])
        predictor.golden, predictor.reference = held["golden"], held["reference"]
        predictor.oos_label = held["config"].get("oos_label", "")
        # when it was trained, in a form that may be part of a URL
        predictor.version = re.sub("[-:]", "", held["provenance"]["utc"]).partition("+")[0]
        predictor.data_version = held["provenance"]["data_version"]
        return predictor

    def decode(self, text: object) -> str:
        """The text as training saw its like. Raises TextError with the reason."""
        return clean(text)

    @torch.inference_mode()
    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """A batch of `Encoded.batch` → (B, C) float32 on the CPU, before temperature."""
        return self.model({name: part.to(self.device) for name, part in inputs.items()}).float().cpu()

    def scaled(self, texts: list[str]) -> Tensor:
        """Cleaned texts → (B, C) logits after temperature, in float64 so that equal inputs give equal digits."""
        return self.logits(self.encoder.encode(texts).batch(range(len(texts)))).double() / self.assets["temperature"]

    def predict_rows(self, rows: list[str]) -> list[dict]:
        """Cleaned texts, in one forward pass → one answer each; see `answers`."""
        encoded = self.encoder.encode(rows)
        return self.answers(encoded, self.logits(encoded.batch(range(len(rows)))))

    def answers(self, encoded: Encoded, logits: Tensor) -> list[dict]:
        """Of each text: pred, label, prob (conf is the same), the `top` classes, in_scope and truncated."""
        scaled = logits.double() / self.assets["temperature"]
        reject = self.assets["reject"]
        accepted = SCORES[reject["score"]](scaled) >= reject["threshold"]
        accepted &= ~torch.from_numpy(encoded.blind)  # nothing of it is known: whatever the model says is a guess
        top = scaled.softmax(1).topk(min(self.top_k, len(self.classes)), dim=1)
        columns = (top.values.tolist(), top.indices.tolist(), accepted.tolist(), encoded.truncated.tolist())
        return [self._answer(*row) for row in zip(*columns, strict=True)]

    def _answer(self, probs: list[float], classes: list[int], accepted: bool, truncated: bool) -> dict:
        names = [self.classes[c] for c in classes]
        top = [{"label": name, "prob": prob} for name, prob in zip(names, probs, strict=True)]
        best = {"pred": classes[0], "label": names[0], "prob": probs[0], "conf": probs[0]}
        return {**best, "in_scope": accepted, "truncated": truncated, "top": top}

    def features(self, rows: list[str], answers: list[dict]) -> dict[str, list]:
        """Of cleaned texts and their answers, for monitoring; see `watch.text_features`."""
        return text_features(self.encoder.encode(rows), answers)

    def predict(self, texts: list[str]) -> list[dict]:
        """Texts → answers in the same order, 64 at a time. Raises TextError for the first that cannot be read."""
        parts = (texts[start : start + 64] for start in range(0, len(texts), 64))
        return [answer for part in parts for answer in self.predict_rows([self.decode(text) for text in part])]

    def check_golden(self) -> None:
        """Replay the texts stored at the end of training; raises CheckpointError where the answers moved."""
        if self.golden is None:
            raise CheckpointError("this predictor holds no golden inputs; load it from a checkpoint")
        moved = (self.scaled(self.golden["texts"]).softmax(1) - self.golden["probs"]).abs().max().item()
        if not moved <= 1e-3:
            raise CheckpointError(
                f"golden replay: probabilities moved by {moved:.2g}, at most 0.001 is wanted; the weights or the code "
                "are not those of the training run: train again or go back to the release that wrote the checkpoint"
            )


def read_texts(path: Path) -> Iterator[tuple[int, object, str]]:
    """(line, text, why there is none) of every line, one in memory at a time."""
    if path.suffix.lower() in SUFFIXES:
        for line, record, content in records(path, blank_too=True):
            if isinstance(record, dict) and "text" in record:
                yield line, record["text"], ""
            else:
                yield line, content, record if isinstance(record, str) else "no text"
        return
    if not path.is_file():
        raise UserError(f"--inp {path}: no such file; wanted .txt with a text a line, .jsonl, .csv or .tsv")
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for line, text in enumerate(file, 1):
            bad = any("\udc80" <= letter <= "\udcff" for letter in text)
            yield line, text.rstrip("\r\n"), "not UTF-8" if bad else ""


def predict_texts(
    predictor: Predictor, texts: Iterable[tuple[int, object, str]], bs: int
) -> Iterator[tuple[int, object, dict, str]]:
    """(line, text, answer, status) of each, in order; a text that cannot be read has an empty answer and the reason.

    The next texts are encoded on a thread while the model works on these; two times SORTED batches are in memory.
    """
    texts = iter(texts)

    def prepared() -> tuple[list, list[str], Encoded | None]:
        block = [_cleaned(*item) for item in itertools.islice(texts, SORTED * bs)]
        good = [text for *_, text, status in block if status == "ok"]
        return block, predictor.encoder.encode(good) if good else None

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(prepared)
        while (now := coming.result())[0]:
            coming = pool.submit(prepared)
            block, encoded = now
            answers = iter(_in_order(predictor, encoded, bs) if encoded else [])
            for line, text, _, status in block:
                yield line, text, next(answers) if status == "ok" else {}, status


def _cleaned(line: int, text: object, why: str) -> tuple[int, object, str, str]:
    try:
        return (line, text, "", why) if why else (line, text, clean(text), "ok")
    except TextError as error:
        return line, text, "", str(error)


def _in_order(predictor: Predictor, encoded: Encoded, bs: int) -> list[dict]:
    """Answers of encoded texts, computed by length and given back in their order."""
    order = np.argsort(np.diff(encoded.token_starts), kind="stable")
    logits = torch.cat([predictor.logits(encoded.batch(order[i : i + bs])) for i in range(0, len(order), bs)])
    return predictor.answers(encoded, logits[np.argsort(order, kind="stable")])


def write_rows(
    predictor: Predictor, texts: Iterable[tuple[int, object, str]], out: Path, bs: int, resume: bool = False
) -> tuple[int, int]:
    """One row a text to `out`; (rows, how many of them without an answer).

    resume: keep the rows that an interrupted call left. Raises UserError where they are of other texts or another
    model, and where there is no text at all; an earlier `out` then stays.
    """
    partial = partial_of(out)
    texts, progress, done, failed = iter(texts), Progress(0, "predicting"), 0, 0
    if resume and partial.exists():
        done, failed = _skip_done(partial, texts, predictor.model_id)
    with open(partial, "a" if done else "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = None if out.suffix.lower() == ".jsonl" else csv.writer(file)
        if table and not done:
            table.writerow(COLUMNS)
        for line, text, answer, status in predict_texts(predictor, texts, bs):
            row = {"line": line, "text": text, **answer, "status": status, "model_id": predictor.model_id}
            if table:
                top = json.dumps(answer["top"], ensure_ascii=False) if answer else ""
                table.writerow([top if name == "top" else row.get(name, "") for name in COLUMNS])
            else:
                file.write(json.dumps({name: row.get(name) for name in COLUMNS}, ensure_ascii=False) + "\n")
            done, failed = done + 1, failed + (status != "ok")
            progress.update(1)
    progress.close()
    if not done:
        partial.unlink()
        raise UserError("--inp: holds no line; nothing was written")
    os.replace(partial, out)
    return done, failed


def _skip_done(partial: Path, texts: Iterator[tuple[int, object, str]], model_id: str) -> tuple[int, int]:
    """Cut a torn last row off, and step `texts` over the rows that are there; (rows, how many without an answer)."""
    done, failed, whole = 0, 0, 0
    for row, size in whole_rows(partial):
        if len(row) != len(COLUMNS):
            break
        if row != COLUMNS:
            line, text, _ = next(texts, (None, None, ""))
            held = row if isinstance(row, dict) else dict(zip(COLUMNS, row, strict=True))
            found = (str(held["line"]), _shown(held["text"]), held["model_id"])
            if found != (str(line), _shown(text), model_id):
                raise UserError(
                    f"{partial}: row {done + 1} is line {found[0]}, {found[1][:40]!r}, by model {found[2]}, wanted "
                    f"line {line}, {_shown(text)[:40]!r}, by model {model_id}; the texts or the model changed: "
                    "run without --resume to start over"
                )
            done, failed = done + 1, failed + (held["status"] != "ok")
        whole = size
    os.truncate(partial, whole)
    return done, failed


def _shown(text: object) -> str:
    """As a CSV has it."""
    return "" if text is None else str(text).encode("utf-8", "backslashreplace").decode()


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parse(argv)
    predictor = Predictor.load(args.ckpt, args.device)
    check_flag("num_classes", args.num_classes, len(predictor.classes), args.ckpt)
    check_flag("max_len", args.max_len, predictor.encoder.max_len, args.ckpt)
    predictor.top_k = args.top_k
    rows, failed = write_rows(predictor, read_texts(Path(args.inp)), Path(args.out), args.bs, args.resume)
    print(f"{rows} texts → {args.out}" + (f"; {failed} of them could not be read, see status" if failed else ""))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", default="runs/nlp/best.pt", help="checkpoint of a finished training")
    add("--inp", default="data/nlp/test.txt", help="texts: .txt, .jsonl, .csv or .tsv")
    add("--out", default="runs/nlp/preds.csv", help="where the predictions go: .csv or .jsonl")
    add("--bs", type=number(int, 1), default=64, help="texts per forward pass")
    add("--top_k", type=number(int, 1), default=5, help="classes named in an answer")
    add("--num_classes", type=int, help="checked against the checkpoint when given")
    add("--max_len", type=int, help="checked against the checkpoint when given")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add("--resume", action=argparse.BooleanOptionalAction, default=False, help="go on with an interrupted --out")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main)
