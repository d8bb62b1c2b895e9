"""python -m project_nlp_intent.eval --ckpt runs/nlp/best.pt --val_jsonl data/nlp/test.jsonl --robustness

Scores a checkpoint on labelled texts. Writes to --run_dir (by default the checkpoint's folder): metrics.json (its part
"eval"), eval_rows_<name>.csv (every answer), confusion_matrix.csv and .pt, mistakes.jsonl (the most confident ones);
with the plots extra also confusion_matrix.png, reliability.png and coverage_risk.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import meter, report
from common.amp_ckpt import load_ckpt, replace_file
from common.cli import UserError, check_flag, command_parser, number, run
from common.data_versions import tell_changes
from common.eval_rows import write_rows
from common.log import plain
from project_nlp_intent.data import OUT, IntentDataset, make_loader
from project_nlp_intent.inference import Predictor
from project_nlp_intent.manifest import held_out, version
from project_nlp_intent.reject import SCORES, auroc, recall_at
from project_nlp_intent.slices import parts, slices
from project_nlp_intent.text import clean
from project_nlp_intent.typos import DAMAGES

SHOWN = 100  # mistakes that are listed


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = parse(argv)
    predictor = Predictor.load(args.ckpt, args.device)
    check_flag("num_classes", args.num_classes, len(predictor.classes), args.ckpt)
    check_flag("max_len", args.max_len, predictor.encoder.max_len, args.ckpt)
    config, run_dir = load_ckpt(args.ckpt)["config"], Path(args.run_dir or Path(args.ckpt).parent)
    run_dir.mkdir(parents=True, exist_ok=True)
    tell_changes(Path(args.ckpt).parent)
    texts = load_texts(args, predictor, config)
    texts.encode(predictor.encoder)
    logits = torch.cat([predictor.logits(inputs) for inputs, _ in make_loader(texts, args.bs)])
    metrics = evaluate(predictor, texts, logits) | {"also_in_train": also_in_train(texts, config)}
    if args.robustness:
        metrics["robustness"] = robustness(predictor, texts, logits, args.bs)
    name = "val" if args.val_jsonl is None else texts.path.stem
    rows = rows_of(predictor, texts, logits)
    metrics |= write_rows(run_dir, name, *rows, sys.argv[1:] if argv is None else argv)
    write_metrics(run_dir / "metrics.json", name, metrics)
    write_files(metrics, predictor, run_dir)
    say(name, metrics, run_dir)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", default="runs/nlp/best.pt", help="checkpoint to score")
    add("--val_jsonl", help="labelled texts: .jsonl, .csv or .tsv (default: those the checkpoint was validated on)")
    add("--run_dir", help="where the scores go (default: the checkpoint's folder)")
    add("--num_classes", type=int, help="checked against the checkpoint when given")
    add("--max_len", type=int, help="checked against the checkpoint when given")
    add("--bs", type=number(int, 1), default=256, help="texts per forward pass")
    add("--robustness", action=argparse.BooleanOptionalAction, default=False, help="also score damaged texts")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    return parser.parse_args(argv)


def load_texts(args: argparse.Namespace, predictor: Predictor, config: dict) -> IntentDataset:
    """Texts of --val_jsonl, or the ones that were held out in training. Raises UserError where they are gone."""
    path = args.val_jsonl or config["val_jsonl"]
    texts = IntentDataset(path, predictor.classes, config["oos_label"])
    if args.val_jsonl is None and config["held_out"]:
        texts = held_out(texts, Path(args.ckpt).parent)
    if not (texts.labels >= 0).any():
        raise UserError(f"{path}: classes {list(texts.new_classes)[:8]}, wanted some of {predictor.classes[:8]}")
    return texts


def also_in_train(texts: IntentDataset, config: dict) -> int | None:
    """How many scored texts training saw too, and so flatter the model; None where that cannot be told."""
    path = Path(config["train_jsonl"])
    if not path.is_file() or path.resolve() == texts.path.resolve():
        return None
    seen = set(IntentDataset(path).texts)
    return sum(text in seen for text in texts.texts)


def evaluate(predictor: Predictor, texts: IntentDataset, every: Tensor) -> dict:
    """All scores as plain values, from the logits (n, C) of all texts, before temperature.

    A text of a class that the model does not know counts as wrong in accuracy and is left out of the other scores; one
    that is out of scope counts in "out_of_scope" alone.
    """
    known, inside, heat = texts.labels >= 0, texts.labels != OUT, predictor.assets["temperature"]
    logits, target = every[known], texts.labels[known]
    after = (logits.double() / heat).softmax(1)
    confidence, pred = after.max(dim=1)
    matrix = meter.confusion_matrix(pred, target, len(predictor.classes))
    top1, top5 = meter.accuracy_topk(logits, target, (1, 5))
    coverage, risk, aurc = meter.coverage_risk(confidence, pred == target)
    share = known[inside].double().mean().item()
    right = every.argmax(1) == texts.labels
    metrics = {
        "file": str(texts.path),
        "data_version": version({"eval": texts}),
        "model_id": predictor.model_id,
        "texts": int(inside.sum()),
        "quarantined": {"lines": len(texts.bad), "first": texts.bad[:SHOWN]},
        "new_classes": texts.new_classes,
        "accuracy": top1 * share,
        "accuracy_95": list(meter.bootstrap_ci(right[inside])),
        "top5": top5 * share,
        "macro_f1": meter.macro_f1(matrix),
        "balanced_accuracy": meter.balanced_accuracy(matrix),
        "temperature": heat,
        "before_temperature": calibration(logits.double().softmax(1), logits, target),
        "after_temperature": calibration(after, logits / heat, target),
        "coverage_risk": {"aurc": aurc, **_thinned(coverage, risk)},
        "out_of_scope": out_of_scope(predictor, texts, every.double() / heat),
        "slices": slices(texts, right, inside),
        "classes": per_class(matrix, predictor.classes),
        "confused": confused(matrix, texts, every, predictor.classes),
        "confusion_matrix": matrix.tolist(),
        "mistakes": mistakes(texts, every / heat, predictor.classes)[:SHOWN],
    }
    return plain(metrics)


def rows_of(predictor: Predictor, texts: IntentDataset, logits: Tensor) -> tuple[dict, str, dict]:
    """(columns, score, slices) for `write_rows`: the answer to every in-scope text, by its line in the file."""
    inside = torch.nonzero(texts.labels != OUT).flatten().tolist()
    prob, pred = (logits.double() / predictor.assets["temperature"]).softmax(1).max(1)
    said, truth = [predictor.classes[pred[i]] for i in inside], [texts.rows[i].label for i in inside]
    columns = {"id": [texts.rows[i].line for i in inside], "truth": truth, "pred": said, "prob": prob[inside].tolist()}
    columns["correct"] = (pred == texts.labels)[inside].int().tolist()
    found = {"class": truth}
    for kind, masks in parts(texts).items():
        names = np.select(list(masks.values()), list(masks), default="other")
        found[kind] = [str(names[i]) for i in inside]
    return columns, "correct", found


def out_of_scope(predictor: Predictor, texts: IntentDataset, scaled: Tensor) -> dict:
    """How well scores tell in-scope texts from others, and what the stored threshold does; logits after temperature.

    recall_at_95: share of the out-of-scope texts turned away at the threshold that answers 95 % of these in-scope ones.
    """
    reject, known, outside = predictor.assets["reject"], texts.labels >= 0, texts.labels == OUT
    score = SCORES[reject["score"]](scaled)
    accepted = (score >= reject["threshold"]) & ~torch.from_numpy(texts.encoded.blind)
    found = {
        **{key: reject[key] for key in ("score", "threshold")},
        "texts": int(outside.sum()),
        "in_scope_accepted": accepted[known].double().mean().item(),
        "blind": int(texts.encoded.blind.sum()),
    }
    if not outside.any():
        return found
    return found | {
        "auroc": auroc(score[known], score[outside]),
        "recall_at_95": recall_at(score[known], score[outside]),
        "recall": 1 - accepted[outside].double().mean().item(),
        "auroc_by_score": {name: auroc(rank(scaled[known]), rank(scaled[outside])) for name, rank in SCORES.items()},
    }


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
    """The curve at about `points` places: a million texts must not make a million numbers in metrics.json."""
    keep = torch.linspace(0, len(coverage) - 1, min(points, len(coverage))).round().long()
    return {"coverage": coverage[keep].tolist(), "risk": risk[keep].tolist()}


def per_class(matrix: Tensor, classes: list[str]) -> dict[str, dict]:
    """{class: {"precision", "recall", "f1", "support"}}."""
    table = meter.class_report(matrix)
    return {name: {key: values[i].item() for key, values in table.items()} for i, name in enumerate(classes)}


def confused(matrix: Tensor, texts: IntentDataset, logits: Tensor, classes: list[str], most: int = 20) -> list[dict]:
    """The pairs (true, pred) that are taken for another most often, with up to three texts each."""
    wrong = matrix.clone().fill_diagonal_(0)
    pred, pairs = logits.argmax(1), []
    for flat in wrong.flatten().argsort(descending=True, stable=True)[:most].tolist():
        true, said = divmod(flat, len(classes))
        if not wrong[true, said]:
            break
        rows = torch.nonzero((texts.labels == true) & (pred == said)).flatten()[:3].tolist()
        examples = [texts.rows[i].text for i in rows]
        pair = {"true": classes[true], "pred": classes[said], "count": int(wrong[true, said])}
        pairs.append(pair | {"of": int(matrix[true].sum()), "texts": examples})
    return pairs


def mistakes(texts: IntentDataset, logits: Tensor, classes: list[str]) -> list[dict]:
    """The wrong answers to in-scope texts, the most confident first; logits (n, C) are after temperature."""
    prob, pred = logits.double().softmax(1).max(1)
    wrong = torch.nonzero((pred != texts.labels) & (texts.labels != OUT)).flatten()
    ranked = wrong[prob[wrong].argsort(descending=True, stable=True)].tolist()
    return [{**texts.rows[i]._asdict(), "pred": classes[pred[i]], "prob": float(prob[i])} for i in ranked]


def robustness(predictor: Predictor, texts: IntentDataset, logits: Tensor, bs: int) -> dict:
    """Accuracy on in-scope texts as they are, and with each kind of damage; seeded for each text."""
    rows = torch.nonzero(texts.labels != OUT).flatten().tolist()
    labels = texts.labels[rows]
    table = {"as they are": (logits.argmax(1)[rows] == labels).double().mean().item()}
    for kind, (name, damage) in enumerate(DAMAGES.items()):
        hurt = [clean(damage(texts.rows[i].text, np.random.default_rng([kind, i]))) for i in rows]
        encoded = predictor.encoder.encode(hurt)
        parts = [range(i, min(i + bs, len(hurt))) for i in range(0, len(hurt), bs)]
        pred = torch.cat([predictor.logits(encoded.batch(part)).argmax(1) for part in parts])
        table[name] = (pred == labels).double().mean().item()
    return table


def write_metrics(path: Path, name: str, metrics: dict) -> None:
    """Put `metrics` into metrics.json as eval.<name>; the other parts stay as they are."""
    held = json.loads(path.read_text()) if path.exists() else {}
    held.setdefault("eval", {})[name] = metrics
    replace_file(path, lambda file: file.write((json.dumps(held, indent=1) + "\n").encode()))


def write_files(metrics: dict, predictor: Predictor, run_dir: Path) -> None:
    """The confusion matrix as .csv (rows = truth) and .pt, the mistakes, and with matplotlib the figures."""
    classes, curve = predictor.classes, metrics["coverage_risk"]
    matrix = torch.tensor(metrics["confusion_matrix"])
    torch.save({"matrix": matrix, "classes": classes}, run_dir / "confusion_matrix.pt")
    with open(run_dir / "confusion_matrix.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["true \\ predicted", *classes])
        table.writerows([name, *row] for name, row in zip(classes, matrix.tolist(), strict=True))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in metrics["mistakes"])
    (run_dir / "mistakes.jsonl").write_text(lines, encoding="utf-8")
    if report.can_draw():
        report.confusion_figure(matrix, classes, run_dir / "confusion_matrix.png")
        tables = (metrics[when]["reliability"] for when in ("before_temperature", "after_temperature"))
        # an empty bin is the text "NaN" in plain values, which float() reads back
        bins = [{key: torch.tensor([float(v) for v in values]) for key, values in table.items()} for table in tables]
        report.reliability_figure(*bins, run_dir / "reliability.png")
        report.risk_figure(torch.tensor(curve["coverage"]), torch.tensor(curve["risk"]), run_dir / "coverage_risk.png")


def say(name: str, metrics: dict, run_dir: Path) -> None:
    """The scores that matter, in a few lines."""
    low, high = metrics["accuracy_95"]
    before, after, outside = (metrics[key] for key in ("before_temperature", "after_temperature", "out_of_scope"))
    print(f"{name}: {metrics['texts']} texts, accuracy {metrics['accuracy']:.2%} (95 %: {low:.2%} to {high:.2%})")
    print(f"top-5 {metrics['top5']:.2%}, macro-F1 {metrics['macro_f1']:.3f}")
    print(f"ECE {before['ece']:.2%} → {after['ece']:.2%} with temperature {metrics['temperature']:.2f}")
    told = f"in scope: {outside['in_scope_accepted']:.1%} answered"
    if outside["texts"]:
        told += f"; of {outside['texts']} texts out of scope {outside['recall']:.1%} turned away, AUROC "
        told += f"{outside['auroc']:.2%} ({outside['score']}), recall at 95 % {outside['recall_at_95']:.1%}"
    print(told)
    for pair in metrics["confused"][:5]:
        print(
            f"  {pair['true']} taken for {pair['pred']}: {pair['count']} of {pair['of']}, such as {pair['texts'][0]!r}"
        )
    if metrics["new_classes"]:
        print(f"classes the model does not know, counted as wrong: {metrics['new_classes']}")
    if metrics["quarantined"]["lines"]:
        first = metrics["quarantined"]["first"][0]
        told = f"{metrics['quarantined']['lines']} lines could not be used, such as line {first['line']}"
        print(f"{told}: {first['reason']}")
    if metrics["also_in_train"]:
        print(f"{metrics['also_in_train']} of these texts are in the train set too")
    for kind, accuracy in metrics.get("robustness", {}).items():
        print(f"  {kind}: accuracy {accuracy:.2%}")
    print(f"details: {run_dir}/metrics.json, {run_dir}/mistakes.jsonl")


if __name__ == "__main__":
    run(main)
