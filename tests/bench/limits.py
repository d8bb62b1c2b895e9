"""python -m tests.bench.limits --bodies BODIES --threads 1 --seconds 3

What decode and the model do alone, in one loop, without any server: the mark that servers are measured by. It is a
plain loop, as one would write it; --keep_memory gives it what our commands have (common.malloc). BODIES holds one
request a line, as the load generators read it. With --ckpt the photo model, else the intent model. The last line is one
JSON object: ms of one forward pass for one item, and items a second of decode + model at the best batch size.
"""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import torch

from common.cli import command_parser, number
from common.malloc import keep_memory
from project_vision_cls.inference import Predictor
from project_vision_cls.serve import Photos
from tests.bench.intent_app import Intents


def load_predictor(ckpt: str) -> tuple[str, Intents | Photos]:
    """(key of an item in a request, the model that all servers share); without a checkpoint the intent model."""
    return ("image_base64", Photos(Predictor.load(ckpt))) if ckpt else ("text", Intents())


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--bodies", required=True, help="file with one JSON request a line")
    add("--ckpt", default="", help="checkpoint of the photo model; empty: the intent model")
    add("--threads", type=number(int, 1), default=1, help="threads of torch, and of decoding")
    add("--seconds", type=number(float, 0), default=3.0, help="time spent on each batch size")
    add("--keep_memory", action="store_true", help="use freed memory again")
    args = parser.parse_args(argv)
    if args.keep_memory:
        keep_memory()
    torch.set_num_threads(args.threads)
    key, predictor = load_predictor(args.ckpt)
    items = [json.loads(line)[key] for line in Path(args.bodies).read_text().splitlines()]
    with ThreadPoolExecutor(args.threads) as pool:
        best = max((8, 16, 32, 64), key=lambda size: items_per_s(predictor, items, pool, size, args.seconds))
        per_s = items_per_s(predictor, items, pool, best, args.seconds)  # anew: the best of four is a lucky one
    one_ms = one_item_ms(predictor, items, args.seconds)
    print(json.dumps({"model_ms_1_item": one_ms, "items_per_s": per_s, "batch": best}))


def one_item_ms(predictor: Intents | Photos, items: list, seconds: float) -> float:
    """Median milliseconds of predict_rows for one decoded item, over `seconds`."""
    rows = [predictor.decode(item) for item in items[:32]]
    taken, start = [], time.perf_counter()
    for row in cycle(rows):
        before = time.perf_counter()
        predictor.predict_rows([row])
        taken.append(time.perf_counter() - before)
        if time.perf_counter() - start > seconds and len(taken) > 10:
            return 1000 * statistics.median(taken[5:])  # the first ones warm up


def items_per_s(predictor: Intents | Photos, items: list, pool: ThreadPoolExecutor, size: int, seconds: float) -> float:
    """Decode `size` items on the pool, then one forward pass, and again, for `seconds`."""
    done, at, start = 0, 0, 0.0
    while not start or time.perf_counter() - start < seconds:
        batch = [items[(at + offset) % len(items)] for offset in range(size)]
        predictor.predict_rows(list(pool.map(predictor.decode, batch)))
        at += size
        if start:
            done += size
        else:
            start = time.perf_counter()  # the first batch warms up
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
