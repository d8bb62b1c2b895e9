"""python -m project_vision_cls.eval --ckpt runs/vision/best.pt --val_root data/vision/test --robustness

Scores a checkpoint on labelled photos, <val_root>/<class>/**. Writes to the checkpoint's folder: metrics.json (its
part "eval"), eval_rows_<name>.csv (every answer), confusion_matrix.csv and .pt, mistakes.png (the most confident ones);
with the plots extra also confusion_matrix.png, reliability.png and coverage_risk.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common import meter, report
from common.amp_ckpt import load_ckpt, replace_file
from common.cli import UserError, check_flag, command_parser, number, run
from common.data_versions import tell_changes
from common.eval_rows import write_rows
from common.log import plain, version_of
from project_vision_cls.corruptions import CORRUPTIONS
from project_vision_cls.data import ImageFolder, class_of, groups_of, make_loader
from project_vision_cls.inference import Predictor
from project_vision_cls.manifest import held_out

SEVERITIES = (1, 2, 3, 4, 5)


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", default="runs/vision/best.pt", help="checkpoint to score")
    add("--val_root", help="labelled photos (default: those the checkpoint was validated on)")
    add("--num_classes", type=int, help="checked against the checkpoint when given")
    add("--bs", type=number(int, 1), default=128, help="photos per forward pass")
    add("--robustness", action=argparse.BooleanOptionalAction, default=False, help="also score damaged photos")
    add("--cache_dir", default="runs/cache", help="where decoded photos are kept; may be deleted at any time")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    predictor = Predictor.load(args.ckpt, args.device)
    check_flag("num_classes", args.num_classes, len(predictor.classes), args.ckpt)
    config, run_dir = load_ckpt(args.ckpt)["config"], Path(args.ckpt).parent
    tell_changes(run_dir)
    photos = load_photos(args, predictor, config)
    name = "val" if args.val_root is None else photos.root.resolve().name
    logits = torch.cat([predictor.logits(pixels) for pixels, _ in make_loader(photos, args.bs)])
    metrics = evaluate(predictor, photos, logits) | {"also_in_train": also_in_train(photos, config, args.cache_dir)}
    if args.robustness:
        metrics["robustness"] = robustness(predictor, photos, args.bs)
    flags = sys.argv[1:] if argv is None else argv
    metrics |= write_rows(run_dir, name, *rows_of(predictor, photos, logits), flags)
    write_metrics(run_dir / "metrics.json", name, metrics)
    write_figures(metrics, photos, run_dir)
    say(name, metrics, run_dir)


def load_photos(args: argparse.Namespace, predictor: Predictor, config: dict) -> ImageFolder:
    """Photos of --val_root, or the ones that were held out in training. Raises UserError where they are gone."""
    root = args.val_root or config["val_root"]
    photos = ImageFolder(root, predictor.classes, predictor.img_size, args.cache_dir)
    if args.val_root is None and config["held_out"]:
        photos = held_out(photos, Path(args.ckpt).parent)
    if (photos.labels < 0).all():
        raise UserError(f"{root}: classes {sorted(photos.unknown_classes)[:8]}, wanted some of {predictor.classes[:8]}")
    return photos


def also_in_train(photos: ImageFolder, config: dict, cache_dir: str) -> list[str] | None:
    """Scored photos that training saw too, as copies or near-copies: their scores flatter the model.

    None where that cannot be told: the train folder is gone, or the photos were held out of it (which kept copies
    together).
    """
    root = Path(config["train_root"])
    if not root.is_dir() or root.resolve() == photos.root.resolve():
        return None
    train = ImageFolder(root, photos.classes, photos.img_size, cache_dir)
    groups = groups_of([train, photos])
    seen = set(groups[: len(train)])
    return [path for path, group in zip(photos.paths, groups[len(train) :], strict=True) if group in seen]


def evaluate(predictor: Predictor, photos: ImageFolder, every: Tensor) -> dict:
    """All scores as plain values, from the logits (n, C) of all photos, before temperature.

    A photo of a class that the model does not know counts as wrong in accuracy and is left out of the other scores.
    """
    known, heat = photos.labels >= 0, predictor.assets["temperature"]
    logits, target = every[known], photos.labels[known]
    after = (logits.double() / heat).softmax(1)
    confidence, pred = after.max(dim=1)
    matrix = meter.confusion_matrix(pred, target, len(predictor.classes))
    top1, top5 = meter.accuracy_topk(logits, target, (1, 5))
    coverage, risk, aurc = meter.coverage_risk(confidence, pred == target)
    share = known.double().mean().item()
    metrics = {
        "root": str(photos.root),
        "data_version": version_of({photos.records[row]["path"]: photos.records[row]["sha256"] for row in photos.rows}),
        "model_id": predictor.model_id,
        "photos": len(photos),
        "skipped": len(photos.skipped),
        "unknown_classes": photos.unknown_classes,
        "accuracy": top1 * share,
        "accuracy_95": list(meter.bootstrap_ci(every.argmax(1) == photos.labels)),
        "top5": top5 * share,
        "macro_f1": meter.macro_f1(matrix),
        "balanced_accuracy": meter.balanced_accuracy(matrix),
        "temperature": heat,
        "before_temperature": calibration(logits.double().softmax(1), logits, target),
        "after_temperature": calibration(after, logits / heat, target),
        "coverage_risk": {"aurc": aurc, **_thinned(coverage, risk)},
        "classes": per_class(matrix, predictor.classes),
        "confusion_matrix": matrix.tolist(),
        "mistakes": mistakes(photos, every / heat)[:100],
    }
    return plain(metrics)


def rows_of(predictor: Predictor, photos: ImageFolder, logits: Tensor) -> tuple[dict, str, dict]:
    """(columns, score, slices) for `write_rows`: every photo's answer, its class, and how light and large it is."""
    prob, pred = (logits.double() / predictor.assets["temperature"]).softmax(1).max(1)
    said, truth = [photos.classes[i] for i in pred.tolist()], [class_of(path) for path in photos.paths]
    columns = {"id": photos.paths, "truth": truth, "pred": said, "prob": prob.tolist()}
    columns["correct"] = (pred == photos.labels).int().tolist()
    shades = np.digitize(photos.thumbs().mean((1, 2, 3)), (64, 192))
    sides = np.digitize(
        [min(photos.records[row]["width"], photos.records[row]["height"]) for row in photos.rows], (64, 256)
    )
    slices = {"class": truth, "light": np.array(["dark", "medium", "light"])[shades].tolist()}
    return columns, "correct", slices | {"side": np.array(["under 64 px", "64 to 255 px", "256 px up"])[sides].tolist()}


def write_figures(metrics: dict, photos: ImageFolder, run_dir: Path) -> None:
    """What `evaluate` found, to look at: the confusion matrix, the contact sheet, and with matplotlib the figures."""
    matrix, curve = torch.tensor(metrics["confusion_matrix"]), metrics["coverage_risk"]
    write_matrix(matrix, photos.classes, run_dir)
    contact_sheet(photos, metrics["mistakes"][:25], run_dir / "mistakes.png")
    if report.can_draw():
        report.confusion_figure(matrix, photos.classes, run_dir / "confusion_matrix.png")
        tables = (metrics[when]["reliability"] for when in ("before_temperature", "after_temperature"))
        # an empty bin is the text "NaN" in plain values, which float() reads back
        bins = [{key: torch.tensor([float(v) for v in values]) for key, values in table.items()} for table in tables]
        report.reliability_figure(*bins, run_dir / "reliability.png")
        report.risk_figure(torch.tensor(curve["coverage"]), torch.tensor(curve["risk"]), run_dir / "coverage_risk.png")


def calibration(probs: Tensor, logits: Tensor, target: Tensor) -> dict:
    """ECE with 15 bins of equal width and of equal mass, Brier score, NLL, and the bins of the reliability diagram."""
    bins = meter.reliability_bins(probs, target)
    return {
        "ece": meter.ece(probs, target),
        "ece_equal_mass": meter.ece(probs, target, scheme="mass"),
        "brier": meter.brier(probs, target),
        "nll": meter.nll(logits, target),
        "reliability": {name: values.tolist() for name, values in bins.items()},
    }


def _thinned(coverage: Tensor, risk: Tensor, points: int = 101) -> dict[str, list[float]]:
    """The curve at about `points` places: a million photos must not make a million numbers in metrics.json."""
    keep = torch.linspace(0, len(coverage) - 1, min(points, len(coverage))).round().long()
    return {"coverage": coverage[keep].tolist(), "risk": risk[keep].tolist()}


def per_class(matrix: Tensor, classes: list[str]) -> dict[str, dict]:
    """{class: {"precision", "recall", "f1", "support"}}."""
    table = meter.class_report(matrix)
    return {name: {key: values[i].item() for key, values in table.items()} for i, name in enumerate(classes)}


def write_matrix(matrix: Tensor, classes: list[str], run_dir: Path) -> None:
    """confusion_matrix.csv (rows = truth, first row and column = names) and confusion_matrix.pt ({matrix, classes})."""
    torch.save({"matrix": matrix, "classes": classes}, run_dir / "confusion_matrix.pt")
    with open(run_dir / "confusion_matrix.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(["true \\ predicted", *classes])
        table.writerows([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))


def mistakes(photos: ImageFolder, logits: Tensor) -> list[dict]:
    """The wrong answers, the most confident first; logits (n, C) are after temperature."""
    prob, pred = logits.double().softmax(1).max(1)
    wrong = torch.nonzero(pred != photos.labels).flatten()
    paths = photos.paths
    return [
        {
            "index": i,
            "path": paths[i],
            "true": class_of(paths[i]),
            "pred": photos.classes[pred[i]],
            "prob": float(prob[i]),
        }
        for i in wrong[prob[wrong].argsort(descending=True, stable=True)].tolist()
    ]


def contact_sheet(photos: ImageFolder, rows: list[dict], path: Path) -> None:
    """The photos of `rows` (of `mistakes`), five in a line, with the true and the predicted class below."""
    cell, text = 128, 24  # pixels
    sheet = Image.new("RGB", (5 * cell, max(1, -(-len(rows) // 5)) * (cell + text)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        x, y = i % 5 * cell, i // 5 * (cell + text)
        sheet.paste(Image.fromarray(photos[row["index"]][0].numpy()).resize((cell, cell)), (x, y))
        told = f"true {row['true']}"[:24] + f"\n{row['pred']}"[:20] + f" {row['prob']:.0%}"
        draw.text((x + 2, y + cell), told.encode(errors="replace").decode(), fill="black", font_size=10)
    sheet.save(path)


def robustness(predictor: Predictor, photos: ImageFolder, bs: int) -> dict:
    """Accuracy by corruption and severity, and their mean (mean corruption accuracy; constants of CIFAR-10-C).

    The damage is done to the decoded photos, at the size the model sees, seeded for each photo.
    """
    table = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (name, damage) in enumerate(CORRUPTIONS.items()):
            scores = []
            for severity in SEVERITIES:
                right = 0
                for start in range(0, len(photos), bs):
                    items = range(start, min(start + bs, len(photos)))

                    def damaged(index: int, severity: int = severity, number: int = number, damage=damage):
                        rng = np.random.default_rng([number, severity, index])
                        return damage(photos[index][0].numpy(), severity, rng)

                    pixels = torch.from_numpy(np.stack(list(pool.map(damaged, items))))
                    pred = predictor.logits(pixels).argmax(1)
                    right += int((pred == photos.labels[items.start : items.stop]).sum())
                scores.append(right / len(photos))
            table[name] = scores
    return {"mean_corruption_accuracy": float(np.mean(list(table.values()))), "accuracy_by_severity": table}


def write_metrics(path: Path, name: str, metrics: dict) -> None:
    """Put `metrics` into metrics.json as eval.<name>; the other parts stay as they are."""
    held = json.loads(path.read_text()) if path.exists() else {}
    held.setdefault("eval", {})[name] = metrics
    replace_file(path, lambda file: file.write((json.dumps(held, indent=1) + "\n").encode()))


def say(name: str, metrics: dict, run_dir: Path) -> None:
    """The scores that matter, in a few lines."""
    low, high = metrics["accuracy_95"]
    before, after = metrics["before_temperature"], metrics["after_temperature"]
    print(f"{name}: {metrics['photos']} photos, accuracy {metrics['accuracy']:.2%} (95 %: {low:.2%} to {high:.2%})")
    print(f"top-5 {metrics['top5']:.2%}, macro-F1 {metrics['macro_f1']:.3f}")
    print(f"ECE {before['ece']:.2%} → {after['ece']:.2%} with temperature {metrics['temperature']:.2f}")
    for kind, row in metrics["classes"].items():
        print(f"  {kind}: precision {row['precision']:.3f}, recall {row['recall']:.3f}, {row['support']} photos")
    if metrics["unknown_classes"]:
        print(f"classes the model does not know, counted as wrong: {metrics['unknown_classes']}")
    if metrics["skipped"]:
        print(f"skipped {metrics['skipped']} unreadable photos")
    if metrics["also_in_train"]:
        print(f"{len(metrics['also_in_train'])} of these photos, or near-copies of them, are in the train set")
    if "robustness" in metrics:
        print(f"mean corruption accuracy {metrics['robustness']['mean_corruption_accuracy']:.2%}")
    print(f"details: {run_dir}/metrics.json, {run_dir}/mistakes.png")


if __name__ == "__main__":
    run(main)
