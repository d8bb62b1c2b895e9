"""The model being served, and its replacement by another that has passed the same checks.

    slot = ModelSlot(load, args, batcher)
    slot.fill()                                     # load, warm up, replay: at the start
    slot.replace({"ckpt": "runs/new/best.pt", "sha256": "..."})    # the same, beside the traffic; then swap

`load()` reads args.ckpt. Both block, and run in a thread; whatever fails, the model that was served goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from common.batcher import MicroBatcher, ModelError, checked
from common.ckpt_file import read_regular
from common.cli import UserError
from common.releases import served_file

log = logging.getLogger(__name__)


def model_version(predictor: object) -> str:
    """Its `version`, or its `model_id` where it has none."""
    return getattr(predictor, "version", "") or predictor.model_id


def model_threads(args: argparse.Namespace) -> int:
    """Threads of one forward pass: --threads, $OMP_NUM_THREADS, or this worker's share of half of the cores.

    The other half decodes and speaks HTTP; on a core that is taken, one thread of a pass holds up all others of it.
    """
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return args.threads or (int(told) if told.isdigit() else 0) or max(1, cores() // 2 // args.workers)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ModelSlot:
    """`predictor` is None until one has passed its checks, and is replaced as a whole."""

    def __init__(self, load: Callable[[], object], args: argparse.Namespace, batcher: MicroBatcher):
        self.load, self.args, self.batcher = load, args, batcher
        self.predictor = None
        self.example_answer: dict = {}

    def fill(self) -> None:
        """Load, warm up and replay the golden answers. Raises what is wrong with the model."""
        torch.set_num_threads(model_threads(self.args))
        self.args.ckpt = served_file(self.args)
        predictor = self.load()
        answer = self.warm_up(predictor)
        predictor.check_golden()
        self.predictor, self.example_answer = predictor, answer

    def replace(self, wanted: dict) -> dict:
        """Serve another model from now on; {"model_id", "was"}.

        wanted: "ckpt", the file (default: the one --model names now, else the one served), and "sha256" of it, checked
        before and after it is read.
        Raises UserError, and what is wrong with the model.
        """
        before = getattr(self.args, "ckpt", "")
        ckpt = wanted.get("ckpt") or served_file(self.args)
        self.check_sha256(ckpt, wanted.get("sha256"))
        predictor = None
        try:
            predictor = self.load_from(ckpt)
            self.args.ckpt = ckpt
            predictor.check_golden()
            self.check_sha256(ckpt, wanted.get("sha256"))  # again: the file may have been replaced in between
            # in the model's own thread, between two batches: what torch keeps for a thread is then there too
            answer = self.batcher.call(lambda: self.warm_up(predictor)).result()
        except BaseException:
            self.args.ckpt = before
            if hasattr(predictor, "close"):  # it has a process of its own
                predictor.close()
            raise
        was = self.predictor.model_id
        self.predictor, self.example_answer = predictor, answer
        log.warning("model %s took over from %s", predictor.model_id, was)
        return {"model_id": predictor.model_id, "was": was}

    def load_from(self, ckpt: str) -> object:
        """The model of another checkpoint; what is served stays as it is."""
        before = getattr(self.args, "ckpt", "")
        try:
            self.args.ckpt = ckpt
            return self.load()
        finally:
            self.args.ckpt = before

    def take(self, predictor: object, ckpt: str) -> None:
        """Serve a model that is loaded and checked already; to be called in the batcher's thread."""
        answer, was = self.warm_up(predictor), self.predictor.model_id
        self.args.ckpt = ckpt
        self.predictor, self.example_answer = predictor, answer
        log.warning("model %s took over from %s", predictor.model_id, was)

    def warm_up(self, predictor: object) -> dict:
        row = predictor.decode(predictor.example)
        for rows in (1, 1, max(1, self.args.max_batch // 2), self.args.max_batch):
            results = predictor.predict_rows([row] * rows)
            if len(results) != rows or any(isinstance(checked(result), ModelError) for result in results):
                raise ModelError(f"warm-up: wanted {rows} answers of finite values for {rows} times the example")
        return results[0]

    @staticmethod
    def check_sha256(ckpt: str, wanted: str | None) -> None:
        """Raises UserError where the file cannot be read or has another content than is wanted, if any is."""
        if wanted is None:
            return
        try:
            found = hashlib.sha256(read_regular(Path(ckpt))).hexdigest()
        except OSError as error:
            raise UserError(f"{ckpt}: cannot be read ({error.strerror or error})") from error
        if found != wanted.lower():
            raise UserError(f"{ckpt}: sha256 {found}, wanted {wanted}; copy the file again")
