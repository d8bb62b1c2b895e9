"""Two parts of tests.bench.monitor: false alarms without drift, and drift injected into running servers."""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from common.alarms import AlarmManager
from common.log import read_jsonl
from common.monitor import judge
from common.policy import checked, make_alarms
from common.reference import make_reference, thresholds
from tests.bench.launch import ROOT, environment, python, running
from tests.tiny_models import watched_texts

LIST = 20  # items in one request
PATIENCE_S = 120  # for one window to be compared


def false_alarms(args, folder: Path, stack: ExitStack) -> dict:
    """Runs of 100 windows without drift, ten features (two of them categories), the default policy."""
    policy = checked({"window": args.window}, "bench")
    alarmed = sum(run_without_drift(policy, args.window, seed, args.windows) for seed in range(args.runs))
    return {"false_alarm_rate": alarmed / args.runs, "false_alarm_runs": args.runs}


def run_without_drift(policy: dict, n: int, seed: int, windows: int) -> bool:
    """Whether any alarm fired in so many windows of `n`."""
    rng = np.random.default_rng(seed)
    mixes = [rng.dirichlet(np.full(size, 2.0)) for size in (10, 30)]

    def draw(count: int) -> dict[str, list]:
        normal = {f"normal {i}": rng.normal(size=count).tolist() for i in range(4)}
        skewed = {f"skewed {i}": rng.lognormal(size=count).tolist() for i in range(2)}
        tied = {f"tied {i}": rng.poisson(2 + 5 * i, count).astype(float).tolist() for i in range(2)}
        chosen = [rng.choice([f"class {k}" for k in range(len(mix))], count, p=mix).tolist() for mix in mixes]
        return {**normal, **skewed, **tied, "label": chosen[0], "channel": chosen[1]}

    reference, alarms = make_reference(draw(1000)), AlarmManager()
    for alarm in make_alarms(policy, thresholds(reference, policy)):
        alarms.add(alarm)
    for window in range(windows):
        judge(reference, draw(n), None, policy, alarms, now=float(window))
    return any(event["state"] == "firing" for event in alarms.history)


def detection(args, folder: Path, stack: ExitStack) -> dict:
    """Windows until the alarm of the right feature fires, for each kind of drift; and what else fired before."""
    found = {}
    for name, (command, route, normal, changed, wanted) in injections(args).items():
        policy = json.loads(shipped(command[0]).read_text()) if shipped(command[0]) else {}
        path = folder / f"{len(found)}.json"
        path.write_text(json.dumps({**policy, "window": args.window, "pause_s": 0}))
        words = python(*command, "--port", 0, "--policy", path, "--request_log", folder / f"{len(found)}.log")
        with running("watched", words, folder, environment(1), b"") as server:
            found[name] = inject(server.port, route, normal, changed, wanted)
        print(f"  {name}: {found[name]}", flush=True)
    windows = [one["windows"] for one in found.values()]
    return {"max_windows_to_detect": max(windows), "detection": found}


def shipped(module: str) -> Path | None:
    path = ROOT / module.split(".")[0] / "monitoring.json"
    return path if path.exists() else None


def injections(args) -> dict[str, tuple]:
    """{name: (command, (path, key), normal items, changed items, the alarms that are right)}."""
    tiny = ("tests.tiny_models", "--form", "watched")
    texts = lambda seed, **changed: cycled(watched_texts(20_000, seed=seed, **changed))  # noqa: E731
    route = ("/predict", "texts")
    found = {
        "0.5 sd in one feature": (tiny, route, texts(1), texts(2, length=45), {"drift_length"}),
        "class mix 10 to 20 points": (tiny, route, texts(3), texts(4, shouting=0.2), {"drift_label"}),
    }
    if args.vision and args.photos:
        command = ("project_vision_cls.serve", "--ckpt", args.vision / "best.pt")
        photos = (("/predict", "images_base64"), photo_items(args.photos), photo_items(args.photos, 0.8))
        found["brightness - 20 %"] = (command, *photos, {"drift_brightness"})
    if args.korean and args.korean_texts and args.texts:
        command = ("project_nlp_intent.serve", "--ckpt", args.korean / "best.pt")
        pair = (text_items(args.korean_texts), text_items(args.texts))
        named = {"drift_unknown", "drift_length", "drift_conf", "drift_in_scope"}
        found["Korean turns English"] = (command, route, *pair, named)
    if args.series and args.csv:
        command = ("project_ts_forecast.serve", "--ckpt", args.series / "best.pt", "--sessions", 0)
        pair = (series_items(args, 1.0), series_items(args, 1.5))
        found["residual scale x 1.5"] = (command, ("/forecast", "items"), *pair, {"drift_size", "drift_covered"})
    return found


def cycled(items: list) -> Iterator:
    while True:
        yield from items


def shuffled(items: list, seed: int = 0) -> Iterator:
    """For ever, in another order each time round: a window is a fair sample."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(items, len(items))


def photo_items(folder: Path, light: float = 1.0) -> Iterator[str]:
    """Base64 of the photos, darkened where light < 1."""

    def item(path: Path) -> str:
        if light == 1.0:
            return base64.b64encode(path.read_bytes()).decode()
        with Image.open(path) as photo:
            dark = photo.convert("RGB").point(lambda level: round(level * light))
        buffer = io.BytesIO()
        dark.save(buffer, "JPEG", quality=90)
        return base64.b64encode(buffer.getvalue()).decode()

    return shuffled([item(path) for path in sorted(folder.glob("*/*")) if path.suffix.lower() in (".jpg", ".png")])


def text_items(path: Path) -> Iterator[str]:
    lines, _ = read_jsonl(path)
    return shuffled([line["text"] for line in lines])


def series_items(args, scale: float) -> Iterator[list[float]]:
    """Pasts of the last tenth of the series; the last value is `scale` times as far from its forecast as it was."""
    from project_ts_forecast.inference import Predictor

    predictor = Predictor.load(args.series / "best.pt")
    column = predictor.columns[0]
    with open(args.csv, newline="") as file:
        values = [float(row[column]) for row in csv.DictReader(file) if row[column]]
    values = values[-len(values) // 10 :]
    pasts = [values[i : i + predictor.win + 1] for i in range(0, len(values) - predictor.win - 1, 2)]
    answers = predictor.predict([past[:-1] for past in pasts])
    first = [np.ravel(answer["pred"])[0].item() for answer in answers]
    return shuffled(
        [[*past[1:-1], ahead + scale * (past[-1] - ahead)] for past, ahead in zip(pasts, first, strict=True)]
    )


def inject(port: int, route: tuple[str, str], normal: Iterator, changed: Iterator, wanted: set[str]) -> dict:
    """Three windows as always, then drift: {"windows" until one of `wanted` fires, "named", "before"}."""
    for _ in range(3):
        one_window(port, route, normal)
    before = firing(port)
    for windows in range(1, 9):
        one_window(port, route, changed)
        if named := sorted(wanted & set(firing(port))):
            return {"windows": windows, "named": named, "before": before}
    return {"windows": 9, "named": [], "before": before}


def one_window(port: int, route: tuple[str, str], items: Iterator) -> None:
    """Send items until one more window has been compared."""
    until, before = time.monotonic() + PATIENCE_S, compared(port)
    while compared(port) == before:
        assert time.monotonic() < until, "no window was compared"
        asked(port, route[0], {route[1]: [next(items) for _ in range(LIST)]})


def asked(port: int, path: str, body: dict | None = None) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return json.loads(text)
    finally:
        connection.close()


def compared(port: int) -> int:
    return asked(port, "/alerts")["workers"][0]["drift"]["windows"]


def firing(port: int) -> list[str]:
    return asked(port, "/alerts")["firing"]
