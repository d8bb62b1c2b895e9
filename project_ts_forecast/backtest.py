"""python -m project_ts_forecast.eval --ckpt runs/ts/best.pt --backtest 3

Rolling origin: the model of a checkpoint's flags is trained anew at several moments and scored on the rows after each,
as it would have been had it been kept up to date. Writes runs/ts/backtest/N/, a run folder each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import UserError
from common.run_dir import claim_run_dir
from project_ts_forecast import train
from project_ts_forecast.calibrate import collect
from project_ts_forecast.data import Data, split_rows


def backtest(config: dict, data: Data, folds: int, every: int, run_dir: Path) -> dict:
    """{"every": rows, "folds": [{"train_end", "mse", "repeat_last", "seasonal_naive", "coverage", "width"}, ...]}.

    The origins lie `every` rows apart from the start of the test part on (0: so that they share it equally); before
    each of them, validation keeps its length. Raises UserError where rows are too few.
    """
    from project_ts_forecast.eval import evaluate, windows_of
    from project_ts_forecast.inference import Predictor

    longest = max(range(len(data.pieces)), key=lambda i: len(data.pieces[i]))
    ends = [rows[longest] for rows in split_rows(data.pieces, config["split"]).values()]
    (_, train_end), (_, val_end), (_, test_end) = ends
    every = every or (test_end - val_end) // folds
    if every < config["h"] or val_end + folds * every > len(data.pieces[longest]):
        raise UserError(
            f"--backtest {folds} --every {every}: {folds * every} rows from row {val_end} on are wanted, at least --h "
            f"{config['h']} each; the series has {len(data.pieces[longest])}"
        )
    found = []
    for fold in range(folds):
        cuts = [end + fold * every for end in (train_end, val_end, val_end + every)]
        split = ",".join(map(str, cuts))
        args = argparse.Namespace(**{**config, "split": split, "device": "cpu", "workers": 0, "resume": False})
        folder = run_dir / "backtest" / str(fold + 1)
        with claim_run_dir(folder, False) as claimed:
            train.train(args, claimed, *train.prepare(args))
        predictor = Predictor.load(folder / "best.pt")
        windows = windows_of(predictor, {"split": split}, data, "test")
        scores = evaluate(predictor, data, windows, collect(predictor, windows, 256))
        band = scores["intervals"]["split"]
        mse = {name: part["mse"]["all"] for name, part in scores["scaled"].items()}
        mse["mse"] = mse.pop("model")
        found.append({"split": split, **mse, "coverage": band["coverage"]["all"], "width": band["width"]["all"]})
    return {"every": every, "folds": found}
