"""python -m project_vision_cls.train --train_root data/vision/train --preset accurate

Reads photos from --train_root/<class>/** and --val_root/<class>/**. Writes to --run_dir: best.pt (the weights that
evaluation and serving use), last.pt (to go on with --resume after an interruption, bit for bit), train.jsonl (a line
an epoch), metrics.json, data_manifest.json and data_files.csv (what the photos are, which were skipped and why), and
run.json (the record of the run: python -m common.registry runs).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from common.amp_ckpt import EMA, AmpScaler, EarlyStopper, check_device, replace_file, save_ckpt
from common.cli import UserError, check_flag, command_parser, number, run
from common.log import JsonlLogger, Progress, plain, provenance
from common.meter import AverageMeter
from common.muon import Muon
from common.run_dir import claim_run_dir, restore
from common.run_record import record_run
from common.seed import seed_all
from project_vision_cls.augment import augmented
from project_vision_cls.calibrate import calibrated, learn_accuracy, mirror_best, validate
from project_vision_cls.data import ImageFolder, balanced_weights, channel_stats, load_splits, make_loader
from project_vision_cls.inference import Predictor
from project_vision_cls.manifest import make_manifest, tell, write_manifest
from project_vision_cls.model import build_model

PRESETS = {
    "quick": {},  # the flags' own defaults
    "accurate": {"epochs": 0, "lr": 1e-2, "bs": 64, "patience": 0, "cutmix": 0.5, "mirror": True},
}
PHOTOS_SEEN = 300_000  # by `--epochs 0`, within 20 to 40 epochs
toggle = argparse.BooleanOptionalAction
whole, count, share, some = number(int, 1), number(int, 0), number(float, 0, 1), number(float, 0)
NOT_CONFIG = {"resume", "workers", "cache_dir", "device", "run_dir", "preset"}  # may differ when a run goes on


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parse(argv)
    check_device(args.device)  # first: a wrong flag or folder must not set an earlier run aside
    photos = load_data(args)
    with claim_run_dir(args.run_dir, args.resume) as run_dir:
        train(args, run_dir, *photos)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags, with those of --preset as defaults: a flag that is given wins."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add_data_flags(parser)
    add_model_flags(parser)
    add("--seed", type=number(int, 0, 2**32 - 1), default=42, help="of weights, order, augmentation and the split")
    add("--deterministic", action=toggle, default=False, help="refuse CUDA kernels that do not repeat")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add("--run_dir", default="runs/vision", help="where everything is written")
    add("--resume", action=toggle, default=False, help="go on with the run in --run_dir")
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word not in ("-h", "--help")]
    parser.set_defaults(**PRESETS[parser.parse_known_args(words)[0].preset])  # so that --help shows them too
    return parser.parse_args(argv)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Which photos, and how they are varied."""
    data = parser.add_argument_group("data").add_argument
    data("--train_root", default="data/vision/train", help="folder with one folder of photos a class")
    data("--val_root", help="the same for validation (default: val, valid or validation beside --train_root)")
    data("--val_fraction", type=share, default=0.15, help="share held out where there is no validation folder")
    data("--num_classes", type=int, help="checked against the class folders when given")
    data(
        "--img_size", type=number(int, 0, 224), default=0, help="pixels a side (default: 32, 64 or 128, by the photos)"
    )
    data("--cache_dir", default="runs/cache", help="where decoded photos are kept; may be deleted at any time")
    data("--workers", type=count, default=0, help="loader processes; 0 reads the cache in this one")
    data("--strict", action=toggle, default=False, help="stop at unreadable photos in place of skipping them")
    data("--balanced", action=toggle, default=False, help="draw every class equally often")
    data("--class_weights", action=toggle, default=False, help="weigh the loss by 1 / class frequency")
    look = parser.add_argument_group("augmentation").add_argument
    look("--crop", type=share, default=0.125, help="largest shift, as a share of the side")
    look("--hflip", action=toggle, default=True, help="mirror left and right by chance")
    look("--vflip", action=toggle, default=False, help="mirror top and bottom by chance")
    look("--light", type=some, default=0.2, help="largest change of contrast and brightness, in standard deviations")
    look("--erase", type=share, default=0.0, help="side of a grayed-out square, as a share of the side; 0 is off")
    look("--mixup", type=some, default=0.0, help="alpha of mixup; 0 is off")
    look("--cutmix", type=share, default=0.0, help="chance of cutmix for a batch")
    look("--label_smoothing", type=share, default=0.1, help="share of the target spread over all classes")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The net and how it is trained."""
    net = parser.add_argument_group("model and optimisation").add_argument
    net("--preset", choices=PRESETS, default="quick", help=f"accurate, for real photos: {PRESETS['accurate']}")
    net("--arch", choices=["resnet", "cnn"], default="resnet", help="SmallResNet or SmallCNN")
    net("--width", type=whole, default=16, help="channels of the first block")
    net("--depth", type=number(int, 1, 4), default=3, help="blocks of SmallCNN")
    net("--epochs", type=count, default=20, help=f"passes over the train set; 0: 20 to 40, for {PHOTOS_SEEN} photos")
    net("--bs", type=whole, default=128, help="photos per step")
    net("--accumulate", type=whole, default=1, help="steps whose gradients make one update")
    net("--optimizer", choices=["muon", "adamw"], default="muon", help="muon: for kernels, with AdamW for the rest")
    net("--lr", type=number(float, 1e-9), default=3e-4, help="peak learning rate")
    net("--warmup", type=share, default=0.2, help="share of the steps over which the rate rises; then it falls to 0")
    net("--weight_decay", type=some, default=0.05, help="decoupled weight decay, times the learning rate")
    net("--clip", type=some, default=1.0, help="largest gradient norm; 0 is off")
    net("--ema", action=toggle, default=True, help="evaluate, save and serve an average of the weights")
    net("--ema_decay", type=share, default=0.998, help="decay of that average, per update")
    net("--mirror", action=toggle, default=False, help="answer with the mean over the photo and its mirror image")
    net("--patience", type=count, default=5, help="epochs without improvement before stopping; 0 never stops")
    net("--amp", action=toggle, default=True, help="mixed precision on CUDA")
    net("--cpu_bf16", action=toggle, default=False, help="bf16 on the CPU too (slower on most)")


def train(args: argparse.Namespace, run_dir: Path, train_set: ImageFolder, val_set: ImageFolder) -> None:
    """One run, from photos to best.pt; `args` as `parse` gives them."""
    device = torch.device(args.device)
    sets = {"train": train_set, "val": val_set}
    manifest = make_manifest(sets)
    tell(manifest)
    config, assets = describe(args, train_set, val_set)
    base = {"project": "vision", "config": config, "provenance": provenance(args.seed, manifest["data_version"])}
    classes, epochs, (mean, std) = len(train_set.classes), config["epochs"], assets["normaliser"].values()

    seed_all(args.seed, args.deterministic)
    model = build_model(config, classes).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(args, model)
    scaler = AmpScaler(device, args.amp, args.cpu_bf16, args.clip)
    ema = EMA(model, args.ema_decay) if args.ema else None
    stopper = EarlyStopper(args.patience, mode="max")
    loader = make_loader(
        train_set,
        args.bs,
        True,
        args.workers,
        True,
        balanced_weights(train_set)[train_set.labels] if args.balanced else None,
    )
    class_weights = balanced_weights(train_set).to(device) if args.class_weights else None
    state = {"model": model, "optimizer": optimizer, "scaler": scaler, "ema": ema, "stopper": stopper}
    history = restore(run_dir, base, **state) if args.resume else []
    write_manifest(run_dir, sets, manifest)  # after restore, which refuses other photos

    for epoch in range(len(history), epochs):
        if stopper.should_stop:
            break
        seed_all(args.seed + epoch)  # so that a resumed run draws what the uninterrupted one drew
        model.train()
        meter, began = AverageMeter(), time.monotonic()
        progress = Progress(len(loader), f"epoch {epoch + 1}/{epochs}, steps")
        for i, (pixels, labels) in enumerate(loader):
            step = epoch * len(loader) + i
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate(step, epochs * len(loader), args.warmup)
            x, target = augmented(pixels.to(device), labels.to(device), args, mean, std, classes)
            with scaler.autocast():
                logits = model(x).float()
                loss = F.cross_entropy(logits, target, class_weights, label_smoothing=args.label_smoothing)
            shared = min(args.accumulate, len(loader) - i // args.accumulate * args.accumulate)  # steps of this update
            update = i % args.accumulate + 1 == shared
            scaler.step(loss, optimizer, model.parameters(), step, shared, update)
            if ema and update:
                ema.update(model)
            meter.update(loss.detach(), len(x))
            progress.update()
        progress.close()

        seconds = time.monotonic() - began
        average = ema.module if ema else model  # what is validated, saved as best and served
        predictor = Predictor(average, {**assets, "temperature": 1.0}, device)
        scores, val_logits = validate(predictor, val_set, args.bs)
        # equal accuracies are common on a small validation set: the lower loss decides between them
        better = stopper.update(scores["val_acc"] - 1e-6 * min(scores["val_loss"], 10.0))
        line = {"epoch": epoch + 1, "loss": meter.avg, **scores, "lr": group["lr"], "best": better}
        history.append(plain({**line, "img_per_s": meter.count / seconds, "seconds": seconds}))
        with JsonlLogger(run_dir / "train.jsonl") as log:
            log.log(history[-1])
        ckpt = {**base, **calibrated(predictor, val_set, val_logits)}
        ckpt |= {"epoch": epoch + 1, "metrics": scores, "model": average.state_dict()}
        if better:
            save_ckpt(run_dir / "best.pt", ckpt)
        opt = {name: part.state_dict() for name, part in state.items() if part is not None} | {"history": history}
        save_ckpt(run_dir / "last.pt", {**ckpt, "opt": opt})
        say(history[-1], epochs)
    if args.mirror:
        mirror_best(run_dir / "best.pt", val_set, args.bs, device)
    learn_accuracy(run_dir / "best.pt", val_set, device)
    finish(run_dir, history)


def load_data(args: argparse.Namespace) -> tuple[ImageFolder, ImageFolder]:
    """Train and validation photos as the flags ask for."""
    if 0 < args.img_size < 16:
        raise UserError(f"--img_size {args.img_size}: wanted 16 to 224, or 0 for a size that suits the photos")
    options = {"img_size": args.img_size, "cache_dir": args.cache_dir, "strict": args.strict}
    train_set, val_set = load_splits(args.train_root, args.val_root, args.val_fraction, args.seed, **options)
    check_flag("num_classes", args.num_classes, len(train_set.classes), args.train_root)
    return train_set, val_set


def describe(args: argparse.Namespace, train_set: ImageFolder, val_set: ImageFolder) -> tuple[dict, dict]:
    """The config (flags with what was worked out for them) and the assets that a checkpoint carries."""
    epochs = args.epochs or min(max(round(PHOTOS_SEEN / len(train_set)), 20), 40)
    found = {"img_size": train_set.img_size, "epochs": epochs, "val_root": str(val_set.root)}
    found["held_out"] = val_set.root == train_set.root  # the validation part is named in data_files.csv
    config = plain({name: value for name, value in vars(args).items() if name not in NOT_CONFIG} | found)
    mean, std = channel_stats(train_set)
    normaliser = {"mean": mean, "std": std}
    assets = {"classes": train_set.classes, "normaliser": normaliser, "img_size": train_set.img_size, "mirror": False}
    return config, assets


def make_optimizer(args: argparse.Namespace, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Weight decay is for matrices and kernels; norms and biases go without."""
    if args.optimizer == "muon":
        return Muon(model.named_parameters(), args.lr, args.weight_decay)
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99))


def rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at `step` of `total`: up over the share `warmup` of them, then down to 0."""
    done = (step + 1) / (total + 1)
    return done / warmup if done < warmup else (1 - done) / (1 - warmup)


def say(line: dict, epochs: int) -> None:
    """One epoch, one line; a star marks the best so far."""
    print(
        f"epoch {line['epoch']}/{epochs}  loss {line['loss']:.3f}  val_loss {line['val_loss']:.3f}  "
        f"val_acc {line['val_acc']:.2%}{' *' if line['best'] else ''}  {line['img_per_s']:.0f} photos/s",
        flush=True,
    )


def finish(run_dir: Path, history: list[dict]) -> None:
    """Put the best epoch into metrics.json as its part "train", and say what was reached and where it lies."""
    best = max(history, key=lambda line: line["epoch"] if line["best"] else 0)
    seconds = sum(line["seconds"] for line in history)
    path = run_dir / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    metrics["train"] = {**best, "best_epoch": best["epoch"], "epochs": len(history), "seconds": seconds}
    replace_file(path, lambda file: file.write((json.dumps(metrics, indent=1) + "\n").encode()))
    record_run(run_dir)
    print(f"best: epoch {best['epoch']}, val_acc {best['val_acc']:.2%}, {seconds:.0f} s → {run_dir}/best.pt")
    print(f"next: python -m project_vision_cls.eval --ckpt {run_dir}/best.pt")


if __name__ == "__main__":
    run(main)
