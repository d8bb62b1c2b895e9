"""Series → windows and targets, without copying, split by time.

    data = load_data("data.csv", find_layout("data.csv"), Rules())      # Data: pieces, step, what was found wrong
    parts = split_rows(data.pieces, "0.7,0.15,0.15")                    # {"train": [(first, end), ...], "val": ...}
    normaliser = fit_normaliser(data.pieces, parts["train"])            # on train rows only
    windows = SeriesWindow(scaled, win=64, h=1, rows=parts["train"])
    for x, y in make_loader(windows, bs=256, shuffle=True):             # (B, win, C) and (B, h, K) float32

A window never crosses a gap or a series; its targets lie wholly inside their part, its past may reach back over the
border. Filled values are seen but never scored: as targets they are NaN.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from common.cli import UserError
from common.seed import seed_worker
from project_ts_forecast.read import Layout, read_blocks
from project_ts_forecast.repair import Piece, Raw, Rules, repair
from project_ts_forecast.stamps import NO_STAMP, Step, calendar, infer_step, parse_times, read_step, to_utc

PARTS = ("train", "val", "test")


@dataclass
class Data:
    """Pieces of series, the step between their rows, how their stamps were written, and what was found wrong."""

    pieces: list[Piece]
    step: Step
    style: dict
    counts: Counter


def load_data(path: str | Path, layout: Layout, rules: Rules, step: str = "") -> Data:
    """Read and repair a whole file. step: as --step gives it; "" is worked out. Raises UserError in words."""
    raws, style = read_raws(path, layout)
    counts = Counter(series=len(raws))
    if layout.time_col:
        try:
            known = read_step(step) if step else infer_step([_distinct(raw.times, rules.tz) for raw in raws])
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    else:
        known = Step()
    if known.kind == "rows":  # also where the stamps are to be ignored
        raws = [Raw(raw.name, None, raw.values, raw.rows) for raw in raws]
    pieces = [piece for raw in raws for piece in repair(raw, known, rules, counts)]
    if not pieces:
        raise UserError(f"{path}: no row with a value is left (of {counts['rows']}); look at the columns of numbers")
    counts["constant_series"] += sum(bool((piece.values == piece.values[0]).all()) for piece in pieces)
    return Data(pieces, known, style, counts)


def _distinct(times: np.ndarray, zone: str) -> np.ndarray:
    times = times[times != NO_STAMP]
    return np.unique(to_utc(times, zone) if zone else times)


def read_raws(path: str | Path, layout: Layout) -> tuple[list[Raw], dict]:
    """The rows of each series of a file, in the order in which the series first appear, and the style of stamps."""
    parts: dict[str, list[Raw]] = defaultdict(list)
    style: dict = {}
    for block in read_blocks(path, layout):
        style = style or block.style
        for raw in raws_of(block, layout):
            parts[raw.name].append(raw)
    return [_joined(name, found) for name, found in parts.items()], style


def raws_of(block, layout: Layout) -> list[Raw]:
    """The rows of a block, by series."""
    if layout.wide:
        columns = enumerate(layout.value_cols)
        return [Raw(name, block.times, block.values[:, i : i + 1], block.rows) for i, name in columns]
    if block.series is None:
        return [Raw("", block.times, block.values, block.rows)]
    names, first, which = np.unique(block.series, return_index=True, return_inverse=True)
    order = np.argsort(which, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(which))[:-1])
    return [
        Raw(
            str(names[i]),
            None if block.times is None else block.times[groups[i]],
            block.values[groups[i]],
            block.rows[groups[i]],
        )
        for i in np.argsort(first)
    ]


def _joined(name: str, parts: list[Raw]) -> Raw:
    times = None if parts[0].times is None else np.concatenate([part.times for part in parts])
    return Raw(name, times, *(np.concatenate([getattr(part, key) for part in parts]) for key in ("values", "rows")))


def split_rows(pieces: list[Piece], spec: str) -> dict[str, list[tuple[int, int]]]:
    """{"train", "val", "test"}: for each piece the rows (first, end) that belong to the part.

    spec: three numbers or stamps with commas between: shares of the time (0.7,0.15,0.15), or where the parts end, as
    rows (8640,11520,14400) or as stamps. Shares are of the time that all series cover together, so that no series'
    future is in another's past; without stamps they are of each series. Raises UserError.
    """
    texts = [text.strip() for text in spec.split(",")]
    wanted = "wanted three shares (0.7,0.15,0.15), three rows (8640,11520,14400) or three stamps"
    if len(texts) != 3:
        raise UserError(f"--split {spec}: {wanted}")
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = None
    if numbers is None:
        stamps, _ = parse_times(texts)
        ends = [[int(np.ceil(p.step.index(np.array([t]), p.start)[0])) for t in stamps] for p in pieces]
    elif sum(numbers) <= 1 + 1e-9 and min(numbers) > 0:
        ends = _shares(pieces, np.cumsum(numbers))
    elif numbers == sorted(numbers) and all(n == int(n) and n > 0 for n in numbers):
        ends = [[int(n) - offset for n in numbers] for offset in _offsets(pieces)]
    else:
        raise UserError(f"--split {spec}: {wanted}")
    rows = [[0, *(min(max(0, end), len(piece)) for end in cut)] for piece, cut in zip(pieces, ends, strict=True)]
    return {part: [(cut[i], cut[i + 1]) for cut in rows] for i, part in enumerate(PARTS)}


def _offsets(pieces: list[Piece]) -> list[int]:
    """Rows between the first row of a piece's series and the piece."""
    first: dict[str, int] = {}
    for piece in pieces:
        first[piece.name] = min(piece.start, first.get(piece.name, piece.start))
    return [round(float(piece.step.index(np.array([piece.start]), first[piece.name])[0])) for piece in pieces]


def _shares(pieces: list[Piece], shares: np.ndarray) -> list[list[int]]:
    if pieces[0].step.kind == "rows":
        lengths: dict[str, int] = {}
        for piece in pieces:
            lengths[piece.name] = piece.start + len(piece)  # the last piece of a series comes last
        return [[round(share * lengths[piece.name]) - piece.start for share in shares] for piece in pieces]
    start = min(piece.start for piece in pieces)
    end = max(round(float(piece.step.index(piece.times(len(piece), len(piece) + 1), start)[0])) for piece in pieces)
    offset = [round(float(piece.step.index(np.array([piece.start]), start)[0])) for piece in pieces]
    return [[round(share * end) - first for share in shares] for first in offset]


def fit_normaliser(pieces: list[Piece], rows: list[tuple[int, int]]) -> dict:
    """Mean and standard deviation of each series and channel over its train rows.

    {"series": {name: line}, "mean": (S + 1, C), "std": (S + 1, C)} in float64; the last line is of all series together,
    for those without train rows. A channel that never changes gets the deviation 1.
    """
    held: dict[str, list[np.ndarray]] = defaultdict(list)
    for piece, (a, b) in zip(pieces, rows, strict=True):
        if b > a:
            held[piece.name].append(piece.values[a:b])
    if not held:
        raise UserError("no row lies in the train part; pass another --split")
    every = [np.concatenate(parts) for parts in held.values()]
    every.append(np.concatenate(every) if len(every) > 1 else every[0])
    std = np.stack([values.std(0) for values in every])
    tiny = 1e-9 * (1 + np.abs(np.stack([values.mean(0) for values in every])))  # rounding of a constant
    return {
        "series": {name: line for line, name in enumerate(held)},
        "mean": torch.from_numpy(np.stack([values.mean(0) for values in every])),
        "std": torch.from_numpy(np.where(std > tiny, std, 1.0)),
    }


def scale_of(normaliser: dict, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (C,) of a series, or of all together where it was not trained on."""
    line = normaliser["series"].get(name, -1)
    return normaliser["mean"][line].numpy(), normaliser["std"][line].numpy()


def scaled(piece: Piece, scale: tuple[np.ndarray, np.ndarray], with_calendar: bool) -> np.ndarray:
    """(n, C + F) float32: a piece as the model sees it. scale: mean and deviation (C,)."""
    x = ((piece.values - scale[0]) / scale[1]).astype(np.float32)
    return np.concatenate([x, calendar(piece.times(), piece.step)], 1) if with_calendar else x


@dataclass
class Scaled:
    """A scaled piece, x (n, C + F), and what is to be forecast of it, y (n, K): NaN where it was filled."""

    x: np.ndarray
    y: np.ndarray


def with_targets(piece: Piece, normaliser: dict, targets: int, with_calendar: bool) -> Scaled:
    """The first `targets` channels are those to forecast."""
    x = scaled(piece, scale_of(normaliser, piece.name), with_calendar)
    return Scaled(x, np.where(piece.filled[:, None], np.float32(np.nan), x[:, :targets]))


class SeriesWindow(Dataset):
    """Windows (win, C) and the h rows after each, as views: memory grows with the rows, not with rows times win.

    series: one array (n, C) or (n,), or a list of arrays or of Scaled. rows: for each of them the (first, end) that
    targets may lie in; the past may begin before. pad: repeat the first row, so that a series' first targets have a
    past too.
    """

    def __init__(
        self,
        series: np.ndarray | list,
        win: int = 64,
        h: int = 1,
        rows: list[tuple[int, int]] | None = None,
        pad: bool = False,
    ):
        parts = [series] if isinstance(series, np.ndarray) else series
        parts = [part if isinstance(part, Scaled) else Scaled(*[_two(part)] * 2) for part in parts]
        rows = rows or [(0, len(part.x)) for part in parts]
        before = win - 1 if pad else 0
        xs, ys, starts, ends, end = [], [], [], [], 0
        for part, (a, b) in zip(parts, rows, strict=True):
            first = max(a, 1 if pad else win) + before  # of the first target, in the padded series
            starts.append(np.arange(first - win, b + before - h - win + 1) + end)
            xs.append(np.concatenate([part.x[:1].repeat(before, 0), part.x]) if pad else part.x)
            ys.append(np.concatenate([part.y[:1].repeat(before, 0), part.y]) if pad else part.y)
            end += len(xs[-1])
            ends.append(end)
        self.win, self.h = win, h
        self.x, self.y = (part[0] if len(part) == 1 else np.concatenate(part) for part in (xs, ys))
        self.counts = [len(part) for part in starts]  # windows of each series
        self.ends = ends  # rows up to the end of each series, in x
        self.starts = starts[0] if len(starts) == 1 else np.concatenate(starts)
        enough = end >= win + h
        self.pasts = sliding_window_view(self.x, win, axis=0) if enough else np.empty((0, self.x.shape[1], win))
        self.futures = sliding_window_view(self.y, h, axis=0) if enough else np.empty((0, self.y.shape[1], h))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int | list[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """x (win, C) and y (h, K), or for a list of indices (B, win, C) and (B, h, K)."""
        start = self.starts[index]
        x, y = self.pasts[start], self.futures[start + self.win]
        return tuple(torch.from_numpy(np.moveaxis(part, -1, -2).copy()) for part in (x, y))


def _two(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float32)
    return values[:, None] if values.ndim == 1 else values


def make_loader(
    dataset: SeriesWindow, bs: int, shuffle: bool = False, workers: int = 0, drop_last: bool = False
) -> DataLoader:
    """Batches of x (B, win, C) and y (B, h, K); whole batches are gathered at once.

    The order comes from torch's global generator and is the same with any number of workers.
    """
    sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    batches = BatchSampler(sampler, bs, drop_last=drop_last and len(dataset) >= bs)
    pin = torch.cuda.is_available()
    return DataLoader(
        dataset, batch_size=None, sampler=batches, num_workers=workers, worker_init_fn=seed_worker, pin_memory=pin
    )
