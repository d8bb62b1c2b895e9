"""python -c "from project_ts_forecast.inference import Predictor;
print(Predictor.load('runs/ts/best.pt').predict([[...]]))"

The trained model with all it needs to turn numbers into forecasts: evaluation, batch prediction and serving share it.
`python -m project_ts_forecast.batch_predict` writes forecasts for a CSV. Reads a checkpoint, writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.amp_ckpt import CheckpointError, check_device, exact_fp32, load_ckpt
from common.log import file_sha256
from project_ts_forecast.anomaly import detect
from project_ts_forecast.conformal import radii, widen
from project_ts_forecast.data import scale_of, scaled
from project_ts_forecast.decode import Past, ValuesError, read_item
from project_ts_forecast.faults import clock
from project_ts_forecast.model import build_model
from project_ts_forecast.repair import Piece, fill
from project_ts_forecast.stamps import Step, calendar, uneven, write_times
from project_ts_forecast.watch import past_features


class Row(NamedTuple):
    """One window, ready for the model: x (win, C + F) float32, scaled; mean and std (K,) of the outputs."""

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    filled: int = 0
    times: list[str] | None = None  # of the h steps
    found: dict | None = None  # what the anomaly detector says of observed rows
    late: bool = False  # a stamp was not where it belongs


class Predictor:
    """A trained model and what it needs.

    assets: value_cols and covariate_cols, normaliser, step, style (of stamps), tz, season, fill and max_gap, calendar
    (whether it needs stamps), pad (whether short pasts are padded), coverage, levels, anomaly (the detector's
    settings), lean (see `model.Forecaster`), and of the conformal step: scores, the calibration set, and local, how far
    intervals follow the volatility.
    """

    def __init__(self, model: torch.nn.Module, assets: dict, device: str | torch.device = "cpu", model_id: str = ""):
        exact_fp32()
        self.model = model.eval().to(device)
        self.assets, self.device, self.model_id = assets, torch.device(device), model_id
        self.win, self.h, model.lean = model.win, model.h, assets.get("lean", 0.0)
        self.columns, self.outputs = assets["value_cols"] + assets["covariate_cols"], len(assets["value_cols"])
        self.step = Step(*assets["step"])
        self.levels = assets["levels"]
        self.coverages = [1 - 2 * level for level in self.levels[: len(self.levels) // 2]]
        self.radius = radii(assets["scores"].cpu(), self.coverages).float()
        self.golden: dict | None = None
        self.reference: dict = {}
        self.version = self.data_version = ""

    @classmethod
    def load(cls, ckpt: str | Path, device: str | torch.device = "cpu") -> Predictor:
        """Rebuild from a checkpoint; raises CheckpointError where that cannot be done."""
        check_device(device)
        held = load_ckpt(ckpt, project="ts")  # on the CPU: only the weights go to the device
        assets = held["assets"]
        model = build_model(held["config"], *sizes_of(assets))
        try:
            model.load_state_dict(held["model"])
        except RuntimeError as error:
            raise CheckpointError(f"{ckpt}: the weights do not fit the config beside them ({error})") from error
        predictor = cls(model, assets, device, model_id=file_sha256(ckpt)[:12])
        predictor.golden, predictor.reference = held["golden"], held["reference"]
        # when it was trained, in a form that may be part of a URL
        predictor.version = re.sub("[-:]", "", held["provenance"]["utc"]).partition("+")[0]
        predictor.data_version = held["provenance"]["data_version"]
        return predictor

    @property
    def example(self) -> list | dict:
        """A past as a request holds it, for warm-up: of the golden inputs, in the units of the data."""
        mean, std = scale_of(self.assets["normaliser"], next(iter(self.assets["normaliser"]["series"])))
        values = self.golden["x"][0, :, : len(self.columns)].double().numpy() * std + mean
        rows = [[float(f"{value:.6g}") for value in row] for row in values]
        rows = [row[0] for row in rows] if len(self.columns) == 1 else rows
        if not self.assets["calendar"]:
            return rows
        return {"values": rows, "times": write_times(self.step.at(0, np.arange(self.win)), self.assets["style"])}

    def decode(self, item: list | dict) -> Row:
        """An item of a request (see `decode.read_item`) → a Row. Raises ValuesError with the reason.

        The latest `win` rows count; a missing value is filled as in training.
        """
        past = read_item(item, self.assets)
        times = None if past.times is None else past.times[-self.win :]
        row = self.row(past.values[-self.win :], times, past.series_id)
        row = row if times is None else row._replace(late=uneven(self.step, times))
        return row if past.observed is None else row._replace(found=self._observed(past))

    def _observed(self, past: Past) -> dict:
        """What the detector, having seen the values, says of the rows observed after them."""
        values = np.concatenate([past.values[:, : self.outputs], past.observed])
        seconds = None
        if past.times is not None:
            seconds = clock(self.step.at(int(past.times[0]), np.arange(len(values))), self.assets["tz"])
        settings = self.assets["anomaly"]
        settings = {**settings, "probation": min(settings["probation"], len(past.values))}
        found = detect(seconds, values, channels=self.columns[: self.outputs], **settings)
        new = slice(len(past.values), None)
        scores, flags = found.score[new].tolist(), found.flag[new].tolist()
        channels = [name if flag else None for name, flag in zip(found.channel[new], flags, strict=True)]
        return {"anomaly": any(flags), "scores": scores, "flags": flags, "channels": channels}

    def row(self, values: np.ndarray, times: np.ndarray | None = None, series_id: str | None = None) -> Row:
        """The end of a past, values (n, C) with NaN for missing and times (n,) in µs → a Row. Raises ValuesError."""
        missing = np.isnan(values)
        filled = int(missing.any(1).sum())
        if filled:
            values = values.copy()
            fill(values, self.assets["fill"], self.assets["max_gap"], self.assets["season"])
            if np.isnan(values).any():
                raise ValuesError(
                    f"{filled} rows of the last {len(values)} have missing values, at most {self.assets['max_gap']} "
                    f"in a row are filled (fill {self.assets['fill']}), none at the start; send them"
                )
        if len(values) < self.win:
            if not self.assets["pad"]:
                raise ValuesError(
                    f"{len(values)} rows, and the model looks back on {self.win}; send at least {self.win}"
                )
            short = self.win - len(values)
            values = np.concatenate([values[:1].repeat(short, 0), values])
            times = None if times is None else self.step.at(int(times[0]), np.arange(-short, len(times)))
        mean, std = self._scale(values, series_id)
        with np.errstate(over="ignore", invalid="ignore"):
            x = ((values - mean) / std).astype(np.float32)
        if not (np.abs(x) < 1e6).all():
            raise ValuesError(
                "the values lie a million deviations from those of the training; are they of this series?"
            )
        ahead = None
        if times is not None:
            x = np.concatenate([x, calendar(times, self.step)], 1) if self.assets["calendar"] else x
            ahead = self.stamps(self.step.at(int(times[-1]), np.arange(1, self.h + 1)))
        return Row(x, mean[: self.outputs], std[: self.outputs], filled, ahead)

    def stamps(self, times: np.ndarray) -> list[str]:
        """µs → texts as the training data wrote them; row numbers where those had none."""
        if self.step.kind == "rows":
            return [str(time) for time in times.tolist()]
        return write_times(times, self.assets["style"], self.assets["tz"])

    def scaled(self, piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """x (n, C + F) of a whole piece, mean and std (K,); None where each past is scaled by itself."""
        known = self._known_scale(piece.name)
        if known is None:
            return None
        x = scaled(piece, known, self.assets["calendar"])
        return x, known[0][: self.outputs], known[1][: self.outputs]

    def _known_scale(self, series_id: str | None) -> tuple[np.ndarray, np.ndarray] | None:
        known = self.assets["normaliser"]["series"]
        if series_id in known or len(known) == 1:
            return scale_of(self.assets["normaliser"], series_id if series_id in known else next(iter(known)))
        return None

    def _scale(self, values: np.ndarray, series_id: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (C,): of the series in training; for others, where there were several, the past's own."""
        if known := self._known_scale(series_id):
            return known
        std = values.std(0)
        return values.mean(0), np.where(std > 1e-9 * (1 + np.abs(values.mean(0))), std, 1.0)

    @torch.inference_mode()
    def outputs_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, win, C + F) float32 → the model's quantiles (B, h, K, Q) and the spread (B, K), scaled, on the CPU.

        The spread is the window's volatility to the power `local` of the assets; scores are divided by it.
        """
        x = x.to(self.device)
        spread = self.model.spread(x)[:, : self.outputs] ** self.assets["local"]
        return self.model(x).float().cpu(), spread.float().cpu()

    def quantiles(self, x: Tensor) -> Tensor:
        """(B, win, C + F) float32 → (B, h, K, levels) scaled, the middle one the forecast, the others calibrated."""
        return widen(*self.outputs_of(x), self.radius)

    def predict_rows(self, rows: list[Row], rolled: Callable | None = None) -> list[dict]:
        """Rows, in one forward pass → one answer each: pred, lower, upper and quantiles, h numbers each.

        rolled: gives each row's radius, (B, h, K, P), from (ends (B, h, K, Q), unit (B, K)) in the units of the data.
        """
        if not rows:
            return []
        out, spread = self.outputs_of(torch.from_numpy(np.stack([row.x for row in rows])))
        mean, std = (np.stack([getattr(row, key) for row in rows])[:, None, :, None] for key in ("mean", "std"))
        radius = self.radius
        if rolled is not None:
            radius = rolled(out.double().numpy() * std + mean, spread.double().numpy() * std[:, 0, :, 0])
        values = widen(out, spread, radius).double().numpy() * std + mean
        values = values[:, :, 0] if self.outputs == 1 else values
        return [self._answer(*pair) for pair in zip(values, rows, strict=True)]

    def _answer(self, values: np.ndarray, row: Row) -> dict:
        """values (h, levels), or (h, K, levels) for several outputs."""
        found = {f"{level:g}": values[..., i].tolist() for i, level in enumerate(self.levels)}
        names = list(found)
        answer = {"pred": found[names[len(names) // 2]], "lower": found[names[0]], "upper": found[names[-1]]}
        answer |= {"quantiles": found, "coverage": self.assets["coverage"], "anomaly": None, "filled": row.filled}
        return answer | ({"times": row.times} if row.times else {}) | (row.found or {})

    def features(self, rows: list[Row], answers: list[dict]) -> dict[str, list]:
        """Of rows, for monitoring; see `watch.past_features`."""
        x = torch.from_numpy(np.stack([row.x for row in rows]))
        return past_features(self, x, [row.filled for row in rows], [row.late for row in rows])

    def predict(self, items: list) -> list[dict]:
        """Pasts → answers in the same order, 256 at a time. Raises ValuesError for the first that cannot be used."""
        parts = (items[start : start + 256] for start in range(0, len(items), 256))
        return [answer for part in parts for answer in self.predict_rows([self.decode(item) for item in part])]

    def check_golden(self) -> None:
        """Replay the inputs stored at the end of training; raises CheckpointError where the answers moved."""
        if self.golden is None:
            raise CheckpointError("this predictor holds no golden inputs; load it from a checkpoint")
        moved = (self.quantiles(self.golden["x"]) - self.golden["quantiles"]).abs().max().item()
        if not moved <= 1e-3:
            raise CheckpointError(
                f"golden replay: forecasts moved by {moved:.2g} deviations, at most 0.001 is wanted; the weights or "
                "the code are not those of the training run: train again or go back to the release that wrote the "
                "checkpoint"
            )


def sizes_of(assets: dict) -> tuple[int, int, int]:
    """Channels, outputs and calendar features of a model with such assets."""
    outputs = len(assets["value_cols"])
    extra = calendar(np.zeros(1, np.int64), Step(*assets["step"])).shape[1] if assets["calendar"] else 0
    return outputs + len(assets["covariate_cols"]), outputs, extra
