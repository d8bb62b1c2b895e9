"""python -m tests.bench.nlp --data data_full.json --seeds 3 --json

--data is CLINC150's JSON, or a folder: with fci_train_val.txt and fci_test.txt (3i4k), or with train, val and test as
.jsonl. Trains with the documented preset once a seed, chooses on val, reports on test; then compares inference over a
file with the same model's forward pass alone. Prints what it does; with --json the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common.cli import UserError, command_parser, run
from common.log import read_jsonl
from project_nlp_intent.inference import Predictor, read_texts, write_rows
from project_nlp_intent.read import read_labelled
from project_nlp_intent.text import clean
from tests.bench.launch import shown

TEXTS = 5000  # of the test part, in one timing of inference


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data", required=True, help="CLINC150's JSON, or a folder of 3i4k or of train, val and test .jsonl")
    add("--seeds", type=int, default=3, help="number of trainings, with the seeds 0, 1, …")
    add("--flags", default="--preset accurate", help="flags of every training")
    add("--rounds", type=int, default=5, help="repetitions of each timing; medians are reported")
    add("--out", help="keep the runs in this folder (default: a temporary one)")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="end with one JSON object")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(args.out or temporary)
        data = imported(Path(args.data), out / "data")
        runs = [one_run(data, out, seed, args.flags) for seed in range(args.seeds)]
        figures = summary(runs) | inference_ratio(data / "test.jsonl", out, args.rounds)
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


def imported(data: Path, out: Path) -> Path:
    """A folder with train.jsonl and test.jsonl, made by the importer where `data` is none."""
    if (data / "train.jsonl").is_file():
        return data
    if data.is_file():
        shown("project_nlp_intent.data", "import", "--format", "clinc150", data, "--out", out)
    elif (data / "fci_train_val.txt").is_file():
        files = [data / "fci_train_val.txt", "--test", data / "fci_test.txt"]
        shown("project_nlp_intent.data", "import", "--format", "tsv", *files, "--columns", "label,text", "--out", out)
    else:
        raise UserError(f"--data {data}: wanted CLINC150's JSON, or a folder with fci_train_val.txt or train.jsonl")
    return out


def one_run(data: Path, out: Path, seed: int, flags: str) -> dict:
    """Train and score one seed, through the commands; {"accuracy", "ece", ...} on test."""
    run_dir = out / f"seed{seed}"
    start = time.monotonic()
    train = ["--train_jsonl", data / "train.jsonl", *flags.split(), "--seed", seed, "--run_dir", run_dir]
    shown("project_nlp_intent.train", *train)
    seconds = time.monotonic() - start  # of the whole command
    shown("project_nlp_intent.eval", "--ckpt", run_dir / "best.pt")
    shown("project_nlp_intent.eval", "--ckpt", run_dir / "best.pt", "--val_jsonl", data / "test.jsonl", "--robustness")
    metrics = json.loads((run_dir / "metrics.json").read_text())
    test, val = metrics["eval"]["test"], metrics["eval"]["val"]
    epochs, _ = read_jsonl(run_dir / "train.jsonl")
    outside = test["out_of_scope"]
    return {
        "seed": seed,
        "accuracy": test["accuracy"],
        "val_accuracy": val["accuracy"],
        "macro_f1": test["macro_f1"],
        "ece": test["after_temperature"]["ece"],
        "ece_before": test["before_temperature"]["ece"],
        "oos_score": outside["score"],
        "oos_auroc": outside.get("auroc"),
        "oos_recall_at_95": outside.get("recall_at_95"),
        "in_scope_accepted": outside["in_scope_accepted"],
        "accuracy_one_typo": test["robustness"]["one typo"],
        "accuracy_no_spacing": test["robustness"]["no spacing"],
        "seconds": seconds,
        "texts_per_s": statistics.median(epoch["texts_per_s"] for epoch in epochs),
    }


def summary(runs: list[dict]) -> dict:
    """Means over the seeds, null where the data have no such figure; seconds is the longest training."""
    names = [name for name in runs[0] if name not in ("seed", "seconds", "oos_score")]
    figures = {n: statistics.mean(r[n] for r in runs) if runs[0][n] is not None else None for n in names}
    spread = statistics.stdev(run["accuracy"] for run in runs) if len(runs) > 1 else 0.0
    return {**figures, "accuracy_sd": spread, "seconds": max(run["seconds"] for run in runs), "runs": runs}


def interleaved(parts: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each part, run in turn so that a slow moment of the machine hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):  # the first round warms up
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def inference_ratio(test: Path, out: Path, rounds: int) -> dict:
    """Texts/s from a text file to a CSV over those of the model's forward pass alone, in batches of 64 in file order.

    What the forward pass takes is encoded beforehand; both write or make an answer for the same texts.
    """
    predictor = Predictor.load(out / "seed0" / "best.pt")
    texts = [" ".join(row.text.split()) for row in read_labelled(test)[0]]
    texts = (texts * -(-TEXTS // len(texts)))[:TEXTS]
    (out / "texts.txt").write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    encoded = predictor.encoder.encode([clean(text) for text in texts])
    batches = [encoded.batch(range(start, min(start + 64, len(texts)))) for start in range(0, len(texts), 64)]

    def alone() -> None:
        for batch in batches:
            predictor.logits(batch)

    def whole() -> None:
        write_rows(predictor, read_texts(out / "texts.txt"), out / "preds.csv", 64)

    seconds = interleaved({"whole": whole, "alone": alone}, rounds)
    return {
        "inference_ratio": seconds["alone"] / seconds["whole"],
        "inference_texts_per_s": len(texts) / seconds["whole"],
    }


if __name__ == "__main__":
    run(main)
