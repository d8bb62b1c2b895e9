"""python -m tests.tiny_models --form text --port 8080

Servers of models that fit on a page: for the form "text" one that finds shouting (for "watched" the same, with all that
monitoring wants), for "series" one that predicts the mean of what it gets. Reads and writes nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.cli import command_parser, run
from common.reference import make_reference
from common.server_microbatch import Route, add_server_flags, run_server

NUMBERS = {
    "type": "array",
    "items": {"type": "number", "minimum": -1e9, "maximum": 1e9},
    "minItems": 2,
    "maxItems": 999,
}


class Tiny:
    """Gives its answers by arithmetic."""

    model_id, version = "tiny-1", "20260102T030405"

    def check_golden(self) -> None:
        """There is nothing that could have moved."""


class Texts(Tiny):
    example = "how much is the fish"

    def decode(self, item: object) -> str:
        if not isinstance(item, str):
            raise ValueError("wanted a string")
        return item

    def predict_rows(self, rows: list[str]) -> list[dict]:
        time.sleep(max((float(row[6:]) for row in rows if row.startswith("sleep ")), default=0.0))
        return [self._answer(sum(letter.isupper() for letter in row) / max(1, len(row))) for row in rows]

    def _answer(self, loud: float) -> dict:
        return {"pred": int(loud > 0.5), "label": "shouting" if loud > 0.5 else "calm", "conf": max(loud, 1 - loud)}


class Watched(Texts):
    """Also says what a text is like, and what texts were like when it "was trained"."""

    classes = ("calm", "shouting")

    def __init__(self):
        texts = watched_texts(1000)
        answers = self.predict_rows(texts)
        self.reference = {**make_reference(self.features(texts, answers), self.embed(texts)), "accuracy": 1.0}

    def features(self, rows: list[str], answers: list[dict]) -> dict[str, list]:
        own = {key: [answer[key] for answer in answers] for key in ("label", "conf")}
        return {**own, "length": [float(len(row)) for row in rows]}

    def embed(self, rows: list[str]) -> np.ndarray:
        return np.array([[row.count(letter) for letter in "abcd"] for row in rows], np.float32)


def watched_texts(count: int, seed: int = 0, length: float = 40, shouting: float = 0.1) -> list[str]:
    """Random letters a to d, of a mean length with a standard deviation of 10, some in capitals."""
    rng = np.random.default_rng(seed)
    letters = ["".join(rng.choice(list("abcd"), max(1, round(n)))) for n in rng.normal(length, 10, count)]
    return [text.upper() if loud < shouting else text for text, loud in zip(letters, rng.random(count), strict=True)]


class Series(Tiny):
    def __init__(self):
        self.example = [1.0, 2.0, 4.0, 3.0]

    def decode(self, item: object) -> np.ndarray:
        if not isinstance(item, list) or not 2 <= len(item) <= 999:
            raise ValueError("wanted a list of 2 to 999 numbers")
        if not all(type(number) in (int, float) and -1e9 <= number <= 1e9 for number in item):
            raise ValueError("wanted numbers from -1e9 to 1e9")
        return np.array(item, np.float64)

    def predict_rows(self, rows: list[np.ndarray]) -> list[dict]:
        return [self._answer(row.mean().item(), row.std().item(), row[-1].item()) for row in rows]

    def _answer(self, mean: float, spread: float, last: float) -> dict:
        score = abs(last - mean) / (spread or 1.0)
        return {"pred": mean, "lower": mean - spread, "upper": mean + spread, "anomaly": score > 1.5, "score": score}


MODELS = {
    "text": (Texts, Route("/predict", "text", "texts", name="shouting")),
    "watched": (Watched, Route("/predict", "text", "texts", name="watched")),
    "series": (Series, Route("/forecast", "values", "series", name="mean", form="series", schema=NUMBERS)),
}


@contextmanager
def served(*module_and_flags: object, ready: bool = True, **environment: str) -> Iterator[str]:
    """URL of `python -m <module and flags> --port 0`, by default when it is ready; it must end with status 0."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-W", "error", "-m", *map(str, module_and_flags), "--port", "0"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
    with subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on "), line
            assert not ready or process.stdout.readline().startswith("ready"), "the server did not get ready"
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        assert code == 0


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("--form", choices=list(MODELS), default="text", help="which of the models")
    parser.add_argument("--load_gate", default="", help="load the model only when there is this file")
    add_server_flags(parser, port=8080)
    args = parser.parse_args(argv)
    model, route = MODELS[args.form]

    def load() -> Tiny:
        while args.load_gate and not os.path.exists(args.load_gate):
            time.sleep(0.01)
        return model()

    sys.exit(run_server(load, route, args))


if __name__ == "__main__":
    run(main)
