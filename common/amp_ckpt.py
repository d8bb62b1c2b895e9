"""The training step that must be right, and the one file a model travels in.

    scaler, ema, stopper = AmpScaler(device), EMA(model), EarlyStopper(patience=5)
    with scaler.autocast():
        loss = loss_fn(model(x), y)
    scaler.step(loss, optimizer, model.parameters(), step=step)     # backward, unscale, clip, step
    ema.update(model)
    save_ckpt("runs/vision/best.pt", {"project": "vision", "model": ema.module.state_dict(), ...})
    ckpt = load_ckpt("runs/vision/best.pt", project="vision")

`save_ckpt` writes the checkpoint and, beside it, a `.json` twin in which tensors are named by shape.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.ckpt_file import CheckpointError, read_whole, replace_file, storable, without_tensors
from common.cli import UserError
from common.log import plain

FORMAT = 1
REQUIRED = ("project", "model", "config", "assets", "metrics", "epoch", "reference", "golden", "provenance")


class NonFiniteLoss(UserError):
    """The loss or its gradient became NaN or infinite; raised before the optimiser's step: the weights are whole."""


class AmpScaler:
    """One optimisation step in the best precision the device has.

    CUDA with bf16: bf16 autocast. Older CUDA: fp16 autocast with loss scaling. CPU: fp32, or bf16 with
    `cpu_bf16=True` (slower on CPUs without AMX). Not `enabled`: fp32. Weights, normalisation statistics and losses
    stay fp32: autocast casts only the operations that gain from it.
    """

    def __init__(
        self, device: torch.device | str, enabled: bool = True, cpu_bf16: bool = False, clip: float | None = 1.0
    ):
        exact_fp32()
        self.device, self.clip = torch.device(device), clip
        on_cuda = self.device.type == "cuda"
        self.enabled = enabled and (on_cuda or cpu_bf16)
        # GPUs before Ampere emulate bf16, slower than fp32: fp16 is for them
        fp16 = on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False)
        self.dtype = torch.float16 if fp16 else torch.bfloat16
        scaled = self.enabled and self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context of the forward pass and the loss."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.enabled)

    def step(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        params: Iterable[Tensor],
        step: int,
        accumulate: int = 1,
        update: bool = True,
    ) -> None:
        """Backward of `loss / accumulate`; with `update` also unscale, clip to the norm `clip`, step and zero.

        loss: scalar, fp32 or wider. step: the number named when the loss or its gradient is not finite. Under loss
        scaling a gradient that overflows only skips this step and halves the scale, as long as the scale is above 1.
        Raises NonFiniteLoss: for the loss before anything is changed, for the gradient before weights and state are.
        """
        assert loss.dtype.itemsize >= 4, f"the loss is {loss.dtype}: three digits are too few, use logits.float()"
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLoss(_not_finite(step, "loss", value))
        self.scaler.scale(loss / accumulate).backward()
        if not update:
            return
        gradients = [p.grad for p in params if p.grad is not None]
        self.scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm(gradients).item()
        if not math.isfinite(norm) and self.scaler.get_scale() <= 1:  # 1: no scaling, or none left to take back
            raise NonFiniteLoss(_not_finite(step, "gradient's norm", norm))
        if self.clip and self.clip < norm < math.inf:
            torch._foreach_mul_(gradients, self.clip / norm)
        self.scaler.step(optimizer)  # skipped by the scaler where a gradient is not finite
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        """The loss scale and its growth counter (empty without loss scaling)."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take up `state_dict()` again."""
        if state:
            self.scaler.load_state_dict(state)


def _not_finite(step: int, what: str, value: float) -> str:
    return (
        f"step {step}: the {what} is {value}, a finite number is wanted; nothing was updated, and the last whole "
        "epoch is in last.pt. Try a lower --lr or --no-amp, or look at the input of this step"
    )


class EarlyStopper:
    """Counts the checks since the last improvement; `patience=0` never stops.

    mode: "max" (accuracy) or "min" (loss). min_delta: how much better counts as better.
    """

    def __init__(self, patience: int = 5, mode: str = "max", min_delta: float = 0.0):
        if mode not in ("min", "max"):
            raise ValueError(f"mode is {mode!r}, wanted 'min' or 'max'")
        self.patience, self.min_delta, self.sign = patience, min_delta, 1.0 if mode == "max" else -1.0
        self.best: float | None = None
        self.bad = 0

    def update(self, value: float) -> bool:
        """Take the newest value; True where it is the best so far. NaN is never better."""
        better = not math.isnan(value) and (self.best is None or self.sign * (value - self.best) > self.min_delta)
        self.best, self.bad = (value, 0) if better else (self.best, self.bad + 1)
        return better

    @property
    def should_stop(self) -> bool:
        """True after `patience` checks in a row without improvement."""
        return 0 < self.patience <= self.bad

    def state_dict(self) -> dict:
        """Best value and count."""
        return {"best": self.best, "bad": self.bad}

    def load_state_dict(self, state: dict) -> None:
        """Take up `state_dict()` again."""
        self.best, self.bad = state["best"], state["bad"]


class EMA:
    """Exponential moving average of a model; `module` is the averaged copy, in eval mode.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that early averages are not held back by the random
    start (TensorFlow ExponentialMovingAverage, num_updates). Floating buffers (batch-norm statistics) are averaged
    with the weights they belong to; integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float = 0.998):
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0
        self.averaged = _tensors(self.module)  # listing them takes as long as averaging them

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average one step towards `model`."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = list(zip(self.averaged, _tensors(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [c for _, c in floats], weight)
        for a, c in pairs:
            if not a.is_floating_point():
                a.copy_(c)

    def state_dict(self) -> dict:
        """The averaged weights and the number of updates."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Take up `state_dict()` again."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once, also where two layers share one (state_dict names it twice)."""
    return [*module.parameters(), *module.buffers()]


def save_ckpt(path: str | Path, ckpt: dict[str, Any]) -> None:
    """Write `ckpt` to `path` whole or not at all (temporary file, fsync, rename), and its `.json` twin.

    ckpt: REQUIRED keys and any others; below them only None, bool, int, float, str, dense tensors, and dicts, lists and
    tuples of these, since loading accepts nothing else. A tensor that is part of a larger one is stored alone.
    Raises CheckpointError with the key path of the first value that is none of these, or where the disk refuses.
    """
    path = Path(path)
    missing = [key for key in REQUIRED if key not in ckpt]
    if missing:
        raise CheckpointError(f"{path}: the checkpoint lacks {', '.join(missing)}; wanted {', '.join(REQUIRED)}")
    ckpt = {**storable(ckpt, "ckpt"), "format": FORMAT}
    torch.save(ckpt, buffer := io.BytesIO())
    data = buffer.getvalue()
    twin = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest(), **plain(without_tensors(ckpt))}
    text = json.dumps(twin, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(data))
        # file names that are not UTF-8 hold surrogates; backslashreplace writes those as JSON escapes
        replace_file(path.with_suffix(".json"), lambda file: file.write(text.encode(errors="backslashreplace")))
    except OSError as error:
        raise CheckpointError(
            f"{path}: {len(data)} bytes cannot be written ({error.strerror or error}); what lay there before is whole. "
            "Make room or pass another --run_dir, then go on with --resume"
        ) from error


def load_ckpt(path: str | Path, project: str | None = None, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of plain values and tensors; code inside the file is never run.

    project: the project it has to belong to. device: where the tensors go.
    Raises CheckpointError, naming file, found, wanted and the next step, for a file that is absent, damaged, not a
    checkpoint, of another format or of another project; UserError for a device that this machine has not.
    """
    path = Path(path)
    check_device(device)
    archive = read_whole(path)
    try:
        ckpt = torch.load(archive, map_location=device, weights_only=True)
    except Exception as error:  # a crafted file may raise anything
        refused = [line for line in str(error).splitlines() if "GLOBAL" in line]  # the line that names the object
        if refused:
            raise CheckpointError(
                f"{path}: holds pickled objects, which can run code and are never loaded; wanted plain values and "
                f"tensors as save_ckpt writes them ({refused[0].strip()[:200]}). Open it with no other tool"
            ) from error
        raise CheckpointError(
            f"{path}: damaged, or not written by save_ckpt ({type(error).__name__}: {str(error)[:90]}); copy it again "
            "or train again"
        ) from error
    _check_keys(path, ckpt, project)
    return ckpt


def exact_fp32() -> None:
    """Let fp32 be fp32 in cuDNN too, which else rounds to TF32's ten bits: a GPU then answers as a CPU does."""
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "ieee"


def check_device(device: torch.device | str) -> None:
    """Raises UserError where this machine does not have the device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise UserError(f"device {device}: not on this machine ({str(error)[:200]}); pass --device cpu") from error


def _check_keys(path: Path, ckpt: object, project: str | None) -> None:
    if not isinstance(ckpt, dict) or "format" not in ckpt:
        raise CheckpointError(
            f"{path}: found no 'format' key, so not written by save_ckpt; pass the --ckpt of a finished run"
        )
    if type(ckpt["format"]) is not int or ckpt["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {ckpt['format']!r}, this code reads format {FORMAT}; use the release that wrote it, or "
            "update this one"
        )
    missing = [key for key in REQUIRED if key not in ckpt]
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}; wanted {', '.join(REQUIRED)}: train again")
    if project is not None and ckpt["project"] != project:
        raise CheckpointError(
            f"{path}: a checkpoint of project {ckpt['project']!r}, wanted {project!r}; use that project's commands"
        )
