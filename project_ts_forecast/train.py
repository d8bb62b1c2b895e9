"""python -m project_ts_forecast.train --csv data/ts/demo.csv --win 96 --h 24 --run_dir runs/ts

Trains a forecaster on the series of a CSV. Writes to --run_dir: best.pt (the epoch with the least validation error),
last.pt (exact resume), their .json twins, train.jsonl, metrics.json, data_manifest.json.

A linear map of the window is solved in closed form, and an LSTM learns to correct it; how much of its correction
counts, none included, is chosen on validation, and so is how far the forecast leans on the season before. A run killed
at any moment goes on with the same command and --resume.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from common.amp_ckpt import EMA, AmpScaler, EarlyStopper, check_device, replace_file, save_ckpt
from common.cli import UserError, command_parser, number, run
from common.log import JsonlLogger, Progress, file_sha256, plain, provenance, version_of
from common.meter import AverageMeter
from common.run_dir import claim_run_dir, restore
from common.run_record import record_run
from common.seed import seed_all
from project_ts_forecast.calibrate import calibrated, collect, loss_of, validate
from project_ts_forecast.data import Data, SeriesWindow, make_loader
from project_ts_forecast.flags import add_data_flags, add_model_flags
from project_ts_forecast.inference import Predictor, sizes_of
from project_ts_forecast.linear import fit_linear
from project_ts_forecast.model import Forecaster, build_model
from project_ts_forecast.prepare import prepare, usual_change, write_manifest

toggle = argparse.BooleanOptionalAction
COLUMNS = ("value_cols", "covariate_cols", "time_col", "series_col")
NOT_CONFIG = {"resume", "workers", "device", "run_dir"}  # may differ when a run goes on


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parse(argv)
    check_device(args.device)  # first: a wrong flag or file must not set an earlier run aside
    data, windows, assets = prepare(args)
    with claim_run_dir(args.run_dir, args.resume) as run_dir:
        train(args, run_dir, data, windows, assets)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; see --help."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add_data_flags(parser)
    add_model_flags(parser)
    add("--seed", type=number(int, 0, 2**32 - 1), default=42, help="of weights and order")
    add("--deterministic", action=toggle, default=False, help="refuse CUDA kernels that do not repeat")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add("--workers", type=number(int, 0), default=0, help="loader processes; 0 gathers windows in this one")
    add("--run_dir", default="runs/ts", help="where everything is written")
    add("--resume", action=toggle, default=False, help="go on with the run in --run_dir")
    args = parser.parse_args(argv)
    if args.arch == "linear" and (args.mc_samples or args.loss == "quantile"):
        raise UserError("--arch linear has neither dropout nor quantiles of its own; pass --arch hybrid or lstm")
    if args.mc_samples and args.loss == "quantile":
        raise UserError("--mc_samples and --loss quantile are two ways to the same intervals; pass one of them")
    return args


def train(args: argparse.Namespace, run_dir: Path, data: Data, windows: dict[str, SeriesWindow], assets: dict) -> None:
    """One run, from windows to best.pt; `args` as `parse` gives them, the rest as `prepare` does."""
    device = torch.device(args.device)
    version = version_of({"data": file_sha256(args.csv)})
    config = describe(args, assets)
    base = {"project": "ts", "config": config, "provenance": provenance(args.seed, version)}

    seed_all(args.seed, args.deterministic)
    model = build_model(config, *sizes_of(assets)).to(device)
    model.usual.copy_(usual_change(windows["train"], len(model.usual)))
    chosen = {}
    if model.linear is not None:
        chosen = fit_linear(model.cpu(), windows["train"], windows["val"])
        model.to(device).linear.requires_grad_(False)
        print(f"linear map: val_mse {chosen['mse']:.4f} with pasts and strengths {chosen['lookbacks']}", flush=True)
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learnt or [torch.zeros(1, requires_grad=True)], args.lr, weight_decay=args.weight_decay
    )
    scaler = AmpScaler(device, args.amp, args.cpu_bf16, args.clip)
    ema = EMA(model, args.ema_decay) if args.ema else None
    stopper = EarlyStopper(args.patience, mode="min")
    state = {"model": model, "optimizer": optimizer, "scaler": scaler, "ema": ema, "stopper": stopper}
    history = restore(run_dir, base, **state) if args.resume else []
    write_manifest(run_dir, args, data, windows, version)
    base_out = without_lstm(model, assets, windows["val"], args.bs, device)
    loader = make_loader(windows["train"], args.bs, True, args.workers, True)
    epochs = args.epochs if learnt else 0

    for epoch in range(len(history), epochs + 1):  # epoch 0: as solved or drawn, before any step
        if stopper.should_stop:
            break
        seed_all(args.seed + epoch)  # so that a resumed run draws what the uninterrupted one drew
        model.train()
        model.gain.fill_(float(epoch > 0 or model.linear is None))
        meter, began = AverageMeter(), time.monotonic()
        steps = len(loader) if epoch else 0
        progress = Progress(steps, f"epoch {epoch}/{epochs}, steps")
        for i, (x, y) in enumerate(loader if epoch else ()):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate((epoch - 1) * steps + i, epochs * steps, args.warmup)
            x, y = x.to(device), y.to(device)
            unit = model.spread(x)[:, None, : model.outputs]  # an error counts by what is usual in its window
            with scaler.autocast():
                out = model(x).float()
                loss = loss_of(out / unit[..., None], y / unit, model.levels, args.loss)
            scaler.step(loss, optimizer, learnt, (epoch - 1) * steps + i)
            if ema:
                ema.update(model)
            meter.update(loss.detach(), len(x))
            progress.update()
        progress.close()

        seconds = time.monotonic() - began
        average = ema.module if ema and epoch else model  # what is validated, saved as best and served
        predictor = Predictor(average, assets, device)
        scores, held = validate(predictor, windows["val"], args.bs, base_out if epoch else None, args.loss)
        better = stopper.update(scores["val_loss" if args.loss == "quantile" and epoch else "val_mse"])
        line = {"epoch": epoch, "loss": meter.avg if epoch else None, **scores, "best": better}
        history.append(plain({**line, "windows_per_s": meter.count / seconds, "seconds": seconds}))
        with JsonlLogger(run_dir / "train.jsonl") as log:
            log.log(history[-1])
        ckpt = {**base, **calibrated(predictor, held, windows["val"])}
        ckpt |= {"epoch": epoch, "metrics": scores, "model": average.state_dict()}
        if better:
            save_ckpt(run_dir / "best.pt", ckpt)
        opt = {name: part.state_dict() for name, part in state.items() if part is not None} | {"history": history}
        save_ckpt(run_dir / "last.pt", {**ckpt, "opt": opt})
        say(history[-1], epochs)
    finish(run_dir, history, chosen)
    record_run(run_dir, {"data": str(args.csv)})


def describe(args: argparse.Namespace, assets: dict) -> dict:
    """The config that a checkpoint carries: the flags, with what was worked out for them."""
    config = {name: value for name, value in vars(args).items() if name not in NOT_CONFIG}
    found = {key: assets[key] for key in (*COLUMNS, "season", "levels")}
    return plain({**config, **found})


def without_lstm(
    model: Forecaster, assets: dict, windows: SeriesWindow, bs: int, device: torch.device
) -> torch.Tensor | None:
    """(N, h, K): what the linear map alone forecasts; None where there is only one part."""
    if model.linear is None or model.lstm is None:
        return None
    gain = model.gain.clone()
    model.gain.zero_()
    out = collect(Predictor(model, assets, device), windows, bs)["out"]
    model.gain.copy_(gain)
    return out[..., out.shape[-1] // 2]


def rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at `step` of `total`: up over the share `warmup` of them, then down to 0."""
    done = (step + 1) / (total + 1)
    return done / warmup if done < warmup else (1 - done) / (1 - warmup)


def say(line: dict, epochs: int) -> None:
    """One epoch, one line; a star marks the best so far."""
    loss = "solved      " if line["loss"] is None else f"loss {line['loss']:.4f} "
    lean = f"  lean {line['lean']:.1f}" if line["lean"] else ""
    print(
        f"epoch {line['epoch']}/{epochs}  {loss} val_mse {line['val_mse']:.4f}  gain {line['gain']:.1f}{lean}"
        f"{' *' if line['best'] else ''}  {line['windows_per_s']:.0f} windows/s",
        flush=True,
    )


def finish(run_dir: Path, history: list[dict], chosen: dict) -> None:
    """Put the best epoch into metrics.json as its part "train", and say what was reached and where it lies."""
    best = max(history, key=lambda line: line["epoch"] if line["best"] else 0)
    seconds = sum(line["seconds"] for line in history)
    path = run_dir / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    metrics["train"] = {**best, "best_epoch": best["epoch"], "epochs": len(history) - 1, "seconds": seconds}
    metrics["train"]["linear"] = plain(chosen)
    replace_file(path, lambda file: file.write((json.dumps(metrics, indent=1) + "\n").encode()))
    print(f"best: epoch {best['epoch']}, val_mse {best['val_mse']:.4f}, {seconds:.0f} s → {run_dir}/best.pt")
    print(f"next: python -m project_ts_forecast.eval --ckpt {run_dir}/best.pt")


if __name__ == "__main__":
    run(main)
