"""python -m project_nlp_intent.train --train_jsonl data/nlp/train.jsonl --preset accurate

Reads labelled texts from --train_jsonl and --val_jsonl (.jsonl, .csv or .tsv). Writes to --run_dir: best.pt (the
weights that evaluation and serving use), last.pt (to go on with --resume after an interruption, bit for bit),
vocab.json, train.jsonl (a line an epoch), metrics.json, data_manifest.json, data_texts.csv (which text is in which
split) and quarantine.jsonl (lines that could not be used, and why).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common.amp_ckpt import EMA, AmpScaler, EarlyStopper, check_device, replace_file, save_ckpt
from common.cli import check_flag, command_parser, number, run
from common.log import JsonlLogger, Progress, plain, provenance
from common.meter import AverageMeter
from common.run_dir import claim_run_dir, restore
from common.run_record import record_run
from common.seed import seed_all
from project_nlp_intent.calibrate import balance, calibrated, learn_accuracy, validate
from project_nlp_intent.data import OOS, IntentDataset, balanced_weights, load_splits, make_loader
from project_nlp_intent.encode import TOKENIZERS, Encoder
from project_nlp_intent.inference import Predictor
from project_nlp_intent.manifest import make_manifest, tell, write_manifest, write_vocab
from project_nlp_intent.model import ARCHS, build_model

PRESETS = {
    "quick": {},  # the flags' own defaults
    "accurate": {"epochs": 0, "lr": 0.0, "patience": 0},
}
EMBEDDED = 13_000_000  # weights of n-gram embeddings for `--hidden 0`: their optimiser takes a quarter of a step
TEXTS_SEEN = 180_000  # by `--epochs 0`, within 8 to 30 epochs
MANY, LR, LR_MANY = 30_000, 2e-3, 4e-3  # `--lr 0` takes larger steps where there are many texts
toggle = argparse.BooleanOptionalAction
whole, count, share, some = number(int, 1), number(int, 0), number(float, 0, 1), number(float, 0)
NOT_CONFIG = {"resume", "device", "run_dir", "preset"}  # may differ when a run goes on


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parse(argv)
    check_device(args.device)  # first: a wrong flag or file must not set an earlier run aside
    texts = load_data(args)
    with claim_run_dir(args.run_dir, args.resume) as run_dir:
        train(args, run_dir, *texts)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Flags, with those of --preset as defaults: a flag that is given wins."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add_data_flags(parser)
    add_model_flags(parser)
    add("--seed", type=number(int, 0, 2**32 - 1), default=42, help="of weights, order, dropout and the split")
    add("--deterministic", action=toggle, default=False, help="refuse CUDA kernels that do not repeat")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add("--run_dir", default="runs/nlp", help="where everything is written")
    add("--resume", action=toggle, default=False, help="go on with the run in --run_dir")
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word not in ("-h", "--help")]
    parser.set_defaults(**PRESETS[parser.parse_known_args(words)[0].preset])  # so that --help shows them too
    return parser.parse_args(argv)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Which texts, and what of them the nets see."""
    data = parser.add_argument_group("data").add_argument
    data("--train_jsonl", default="data/nlp/train.jsonl", help="labelled texts: .jsonl, .csv or .tsv")
    data("--val_jsonl", help="the same for validation (default: val, valid, validation or dev beside --train_jsonl)")
    data("--val_fraction", type=share, default=0.1, help="share held out where there is no validation file")
    data("--num_classes", type=int, help="checked against the labels when given")
    data("--oos_label", default=OOS, help="label of texts that are out of scope: no class, and never trained on")
    data(
        "--strict",
        action=toggle,
        default=False,
        help="stop at lines that cannot be used in place of putting them aside",
    )
    data("--class_weights", action=toggle, default=False, help="weigh the loss by 1 / class frequency")
    look = parser.add_argument_group("tokens and n-grams").add_argument
    look(
        "--tokenizer",
        choices=TOKENIZERS,
        default="auto",
        help="what textcnn and transformer read; auto: word; char for Korean and the like",
    )
    look("--max_len", type=whole, default=32, help="tokens, and words, of a text that are looked at")
    look("--max_vocab", type=number(int, 258), default=30000, help="most tokens")
    look("--letters", type=number(int, 2, 9), default=5, help="longest n-gram of letters")
    look("--word_runs", type=number(int, 0, 5), default=2, help="longest n-gram of words")
    look(
        "--edges",
        type=count,
        default=0,
        help="longest beginning and end of a text that are n-grams of their own, in letters; 1: none; 0: 8 for Korean "
        "and the like, else none",
    )
    look("--max_ngrams", type=whole, default=200000, help="most n-grams; the frequent ones are kept")
    look("--gram_drop", type=number(float, 0, 0.95), default=0.4, help="share of n-grams left out in a training step")
    look(
        "--token_drop", type=number(float, 0, 0.95), default=0.2, help="share of tokens made unknown in a training step"
    )


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """The nets and how they are trained."""
    net = parser.add_argument_group("model and optimisation").add_argument
    net("--preset", choices=PRESETS, default="quick", help=f"accurate, for real texts: {PRESETS['accurate']}")
    net("--arch", choices=ARCHS, default="ngram+textcnn", help="nets whose answers are averaged")
    net("--dim", type=whole, default=128, help="size of token embeddings")
    net("--channels", type=whole, default=256, help="of each convolution")
    net("--hidden", type=count, default=0, help="size of n-gram embeddings; 0: 32 to 256, the fewer the more n-grams")
    net("--dropout", type=number(float, 0, 0.95), default=0.5, help="before each net's last layer")
    net("--epochs", type=count, default=10, help=f"passes over the train set; 0: 8 to 30, for {TEXTS_SEEN} texts")
    net("--bs", type=number(int, 2), default=256, help="texts per step; fewer where an epoch would have under 20 steps")
    net("--lr", type=some, default=LR, help=f"peak learning rate; 0: {LR}, or {LR_MANY} from {MANY} texts on")
    net("--warmup", type=share, default=0.1, help="share of the steps over which the rate rises; then it falls to 0")
    net("--weight_decay", type=some, default=0.0, help="decoupled weight decay, times the learning rate")
    net("--label_smoothing", type=share, default=0.1, help="share of the target spread over all classes")
    net("--clip", type=some, default=0.0, help="largest gradient norm; 0 is off")
    net("--ema", action=toggle, default=True, help="evaluate, save and serve an average of the weights")
    net("--ema_decay", type=share, default=0.995, help="decay of that average, per update")
    net("--patience", type=count, default=5, help="epochs without improvement before stopping; 0 never stops")
    net("--coverage", type=share, default=0.95, help="share of in-scope validation texts to be answered")
    net("--amp", action=toggle, default=True, help="mixed precision on CUDA")
    net("--cpu_bf16", action=toggle, default=False, help="bf16 on the CPU too (slower on most)")


def train(args: argparse.Namespace, run_dir: Path, train_set: IntentDataset, val_set: IntentDataset) -> None:
    """One run, from texts to best.pt; `args` as `parse` gives them."""
    device = torch.device(args.device)
    sets = {"train": train_set, "val": val_set}
    manifest = make_manifest(sets)
    tell(manifest, sets)
    encoder = fit_encoder(args, train_set)
    for part in sets.values():
        part.encode(encoder)
    config, assets = describe(args, train_set, val_set, encoder)
    base = {"project": "nlp", "config": config, "provenance": provenance(args.seed, manifest["data_version"])}
    epochs, bs, lr = config["epochs"], config["bs"], config["lr"]

    seed_all(args.seed, args.deterministic)
    model = build_model(config, len(train_set.classes), encoder).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.99), weight_decay=args.weight_decay, fused=True)
    scaler = AmpScaler(device, args.amp, args.cpu_bf16, args.clip)
    ema = EMA(model, args.ema_decay) if args.ema else None
    stopper = EarlyStopper(args.patience, mode="max")
    loader = make_loader(train_set, bs, shuffle=True, drop_last=True)
    class_weights = balanced_weights(train_set).to(device) if args.class_weights else None
    state = {"model": model, "optimizer": optimizer, "scaler": scaler, "ema": ema, "stopper": stopper}
    history = restore(run_dir, base, **state) if args.resume else []
    write_manifest(run_dir, sets, manifest)  # after restore, which refuses other texts
    write_vocab(run_dir / "vocab.json", encoder)

    for epoch in range(len(history), epochs):
        if stopper.should_stop:
            break
        seed_all(args.seed + epoch)  # so that a resumed run draws what the uninterrupted one drew
        model.train()
        meter, began = AverageMeter(), time.monotonic()
        progress = Progress(len(loader), f"epoch {epoch + 1}/{epochs}, steps")
        for i, (inputs, labels) in enumerate(loader):
            step = epoch * len(loader) + i
            for group in optimizer.param_groups:
                group["lr"] = lr * rate(step, epochs * len(loader), args.warmup)
            inputs, labels = {name: part.to(device) for name, part in inputs.items()}, labels.to(device)
            with scaler.autocast():
                branches = model.branches(inputs)
                loss = sum(
                    branch_loss(name, logits.float(), labels, class_weights, args.label_smoothing)
                    for name, logits in branches.items()
                )
            scaler.step(loss, optimizer, model.parameters(), step)
            if ema:
                ema.update(model)
            meter.update(loss.detach(), len(labels))
            progress.update()
        progress.close()

        seconds = time.monotonic() - began
        average = ema.module if ema else model  # what is validated, saved as best and served
        predictor = Predictor(average, assets, device)
        balance(predictor, val_set, bs)
        scores, val_logits = validate(predictor, val_set, bs)
        # equal accuracies are common on a small validation set: the lower loss decides between them
        better = stopper.update(scores["val_acc"] - 1e-6 * min(scores["val_loss"], 10.0))
        line = {"epoch": epoch + 1, "loss": meter.avg, **scores, "lr": group["lr"], "best": better}
        history.append(plain({**line, "texts_per_s": meter.count / seconds, "seconds": seconds}))
        with JsonlLogger(run_dir / "train.jsonl") as log:
            log.log(history[-1])
        ckpt = {**base, **calibrated(predictor, val_set, val_logits, args.coverage)}
        ckpt |= {"epoch": epoch + 1, "metrics": scores, "model": average.state_dict()}
        if better:
            save_ckpt(run_dir / "best.pt", ckpt)
        opt = {name: part.state_dict() for name, part in state.items() if part is not None} | {"history": history}
        save_ckpt(run_dir / "last.pt", {**ckpt, "opt": opt})
        say(history[-1], epochs)
    learn_accuracy(run_dir / "best.pt", val_set, device)
    finish(run_dir, history)
    record_run(run_dir, {name: str(part.path) for name, part in sets.items()})


def load_data(args: argparse.Namespace) -> tuple[IntentDataset, IntentDataset]:
    """Train and validation texts as the flags ask for."""
    options = {"oos_label": args.oos_label, "strict": args.strict}
    train_set, val_set = load_splits(args.train_jsonl, args.val_jsonl, args.val_fraction, args.seed, **options)
    check_flag("num_classes", args.num_classes, len(train_set.classes), args.train_jsonl)
    return train_set, val_set


def fit_encoder(args: argparse.Namespace, train_set: IntentDataset) -> Encoder:
    """Vocabulary and n-grams of the train texts."""
    sizes = {"letters": (2, args.letters), "word_runs": args.word_runs, "edges": args.edges}
    return Encoder.fit(
        train_set.texts, args.tokenizer, args.max_len, args.max_vocab, max_ngrams=args.max_ngrams, **sizes
    )


def describe(
    args: argparse.Namespace, train_set: IntentDataset, val_set: IntentDataset, encoder: Encoder
) -> tuple[dict, dict]:
    """The config (flags with what was worked out for them) and the assets that a checkpoint carries."""
    n = len(train_set)
    found = {"lr": args.lr or (LR if n < MANY else LR_MANY)}
    found |= {"epochs": args.epochs or min(max(round(TEXTS_SEEN / n), 8), 30), "bs": min(args.bs, max(2, n // 20))}
    found |= {"val_jsonl": str(val_set.path), "held_out": val_set.path == train_set.path}  # data_texts.csv says which
    found["hidden"] = args.hidden or min(max(EMBEDDED // max(1, len(encoder.ngrams)), 32), 256)
    config = plain({name: value for name, value in vars(args).items() if name not in NOT_CONFIG} | found)
    return config, {"classes": train_set.classes, "encoder": encoder.assets()}


def branch_loss(name: str, logits: Tensor, labels: Tensor, class_weights: Tensor | None, smoothing: float) -> Tensor:
    """Cross-entropy; for the linear net a squared hinge of each class against the rest, as in a linear SVM.

    logits (B, C). The hinge wants the true class at 2 or more and every other at 0 or less (Rifkin & Klautau 2004).
    """
    if name != "ngram_linear":
        return F.cross_entropy(logits, labels, class_weights, label_smoothing=smoothing)
    sign = 2.0 * F.one_hot(labels, logits.shape[1]) - 1
    loss = (1 - sign * (logits - 1)).relu().square().sum(1)
    return loss.mean() if class_weights is None else (loss * class_weights[labels]).sum() / class_weights[labels].sum()


def rate(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at `step` of `total`: up over the share `warmup` of them, then down to 0."""
    done = (step + 1) / (total + 1)
    return done / warmup if done < warmup else (1 - done) / (1 - warmup)


def say(line: dict, epochs: int) -> None:
    """One epoch, one line; a star marks the best so far."""
    print(
        f"epoch {line['epoch']}/{epochs}  loss {line['loss']:.3f}  val_loss {line['val_loss']:.3f}  "
        f"val_acc {line['val_acc']:.2%}{' *' if line['best'] else ''}  {line['texts_per_s']:.0f} texts/s",
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
    print(f"best: epoch {best['epoch']}, val_acc {best['val_acc']:.2%}, {seconds:.0f} s → {run_dir}/best.pt")
    print(f"next: python -m project_nlp_intent.eval --ckpt {run_dir}/best.pt")


if __name__ == "__main__":
    run(main)
