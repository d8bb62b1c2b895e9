"""python -m tests.demo

The whole road on made-up data, in the commands a user would type: each is printed before it runs. Writes data/demo and
runs/demo; `--small` is the size that the tests use.
"""

from __future__ import annotations

import base64
import json
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from common.cli import command_parser


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("--data", default="data/demo", help="folder for the made-up data")
    parser.add_argument("--runs", default="runs/demo", help="folder for what the commands write")
    parser.add_argument("--small", action="store_true", help="a few photos and one epoch, to see that it runs")
    args = parser.parse_args(argv)
    start = time.monotonic()
    told = [vision(Path(args.data, "vision"), Path(args.runs, "vision"), args.small)]
    told.append(nlp(Path(args.data, "nlp"), Path(args.runs, "nlp"), args.small))
    told.append(ts(Path(args.data, "ts"), Path(args.runs, "ts"), args.small))
    print(f"\nDone in {time.monotonic() - start:.0f} s.\n" + "\n".join(told))


def vision(data: Path, runs: Path, small: bool) -> str:
    """Photos → training → scores → a CSV → one answer over HTTP. Returns what was reached and where it lies."""
    count = "--train 12 --val 6 --test 6" if small else ""
    fit = "--epochs 1 --bs 16" if small else "--epochs 15 --bs 64 --lr 1e-2"
    cache = f"--cache_dir {runs}/cache"
    command(f"project_vision_cls.synthetic --out {data} --force {count}")
    command(f"project_vision_cls.train --train_root {data}/train {fit} --run_dir {runs} {cache}")
    command(f"project_vision_cls.eval --ckpt {runs}/best.pt --val_root {data}/test {cache}")
    command(f"project_vision_cls.inference --ckpt {runs}/best.pt --input_dir {data}/test --out_csv {runs}/preds.csv")
    photo = sorted(data.glob("test/*/*.jpg"))[0]
    body = {"image_base64": base64.b64encode(photo.read_bytes()).decode()}
    answer = ask(f"project_vision_cls.serve --ckpt {runs}/best.pt --port 0", "/predict", body)
    scores = json.loads((runs / "metrics.json").read_text())["eval"]["test"]
    return (
        f"vision: accuracy {scores['accuracy']:.1%} on {scores['photos']} test photos, "
        f"ECE {scores['after_temperature']['ece']:.1%}\n"
        f"  the server said {answer['label']!r} ({answer['prob']:.0%}) of {photo} in {answer['lat_ms']:.0f} ms\n"
        f"  {runs}: best.pt (the model), metrics.json (scores), preds.csv (predictions), mistakes.png (worst errors)"
    )


def nlp(data: Path, runs: Path, small: bool) -> str:
    """The same for texts, Korean and English."""
    count, fit = ("--train 20 --val 10 --test 10", "--epochs 2") if small else ("", "--epochs 8")
    command(f"project_nlp_intent.synthetic --out {data} --force {count}")
    command(f"project_nlp_intent.train --train_jsonl {data}/train.jsonl {fit} --run_dir {runs}")
    command(f"project_nlp_intent.eval --ckpt {runs}/best.pt --val_jsonl {data}/test.jsonl --robustness")
    command(f"project_nlp_intent.inference --ckpt {runs}/best.pt --inp {data}/test.txt --out {runs}/preds.csv")
    text = "환불하고 싶은데요, the lamp is broken"
    answer = ask(f"project_nlp_intent.serve --ckpt {runs}/best.pt --port 0", "/predict", {"text": text})
    scores = json.loads((runs / "metrics.json").read_text())["eval"]["test"]
    return (
        f"nlp: accuracy {scores['accuracy']:.1%} on {scores['texts']} test texts, "
        f"ECE {scores['after_temperature']['ece']:.1%}, out of scope: AUROC {scores['out_of_scope']['auroc']:.1%}\n"
        f"  the server said {answer['label']!r} ({answer['conf']:.0%}) of {text!r} in {answer['lat_ms']:.0f} ms\n"
        f"  {runs}: best.pt (the model), metrics.json (scores), preds.csv (predictions), mistakes.jsonl (worst errors)"
    )


def ts(data: Path, runs: Path, small: bool) -> str:
    """The same for series: hourly readings of four meters, with their weather, gaps and faults."""
    size, fit = (
        ("--meters 2 --rows 1500", "--win 48 --epochs 1")
        if small
        else ("", "--win 168 --epochs 4 --lr 3e-3 --calendar")
    )
    columns = "--series_col meter --value_cols load --covariate_cols temperature"
    command(f"project_ts_forecast.synthetic --out {data} --force {size}")
    command(f"project_ts_forecast.train --csv {data}/demo.csv {columns} --h 24 --hidden 32 {fit} --run_dir {runs}")
    command(f"project_ts_forecast.eval --ckpt {runs}/best.pt --labels {data}/windows.json")
    command(f"project_ts_forecast.batch_predict --ckpt {runs}/best.pt --out {runs}/preds.csv")
    row = {"series_id": "meter1", "time": "2025-06-01 12:00", "value": {"load": 120.5, "temperature": 18.0}}
    answer = ask(f"project_ts_forecast.serve --ckpt {runs}/best.pt --port 0", "/observe", row)
    scores = json.loads((runs / "metrics.json").read_text())["eval"]["test"]
    mse = {name: part["mse"]["all"] for name, part in scores["scaled"].items()}
    found = scores["anomalies"]
    return (
        f"ts: MSE {mse['model']:.3f} a day ahead, {mse['seasonal_naive']:.3f} by repeating the day before; "
        f"{found['found']} of {found['events']} faults found, {found['false_alarms']} false alarms\n"
        f"  the server gave the row of {row['time']} the anomaly score {answer['score']} in {answer['lat_ms']:.0f} ms\n"
        f"  {runs}: best.pt (the model), metrics.json (scores), preds.csv (forecasts)"
    )


def command(line: str) -> None:
    """Print and run `python -m <line>`; ends the demo where it fails."""
    print(f"\n$ python -m {line}", flush=True)
    subprocess.run([sys.executable, "-m", *shlex.split(line)], check=True)


def ask(server: str, route: str, body: dict) -> dict:
    """Start a server on a free port, post one request, and shut it down as an operator would, with SIGTERM."""
    print(f"\n$ python -m {server}", flush=True)
    with subprocess.Popen([sys.executable, "-m", *shlex.split(server)], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().split()[-1]
            print(f"listening on {url}\n{process.stdout.readline().strip()}")
            with urllib.request.urlopen(url + route, json.dumps(body).encode(), timeout=60) as reply:
                answer = json.load(reply)
            print(f"$ curl {url}{route} → {json.dumps(answer)[:160]}")
        finally:
            process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    print(f"SIGTERM → exit status {status}")
    if status:
        sys.exit(f"the server ended with status {status}")
    return answer


if __name__ == "__main__":
    main()
