"""What turned out to be true, joined to what was answered: `POST /feedback {"req_id": "…", "label": "mug"}`.

    feedback = Feedback(most=10_000)
    feedback.remember([("abc-1", [{"pred": 4, "label": "mug", "prob": 0.9}])])  # of each answer
    result = feedback.join({"req_id": "abc-1", "label": "mug"})                 # "joined"
    feedback.count({result: 1})
    feedback.state()                                                            # accuracy, error, coverage

Remembers the latest answers only, so memory is bounded: what comes after that is "late" (an id of this server) or
"unknown".
"""

from __future__ import annotations

import math
import threading
from collections import deque

import numpy as np

from common.window import SlidingWindow

WINDOW = 500  # joined answers
CHECK = 100  # joined answers of one check of the alarms
MOST_NUMBER, MOST_VALUE = 1_000_000, 1e300  # a class or a place in a list; a value, either way
RESULTS = ("joined", "duplicate", "unknown_label", "late", "unknown")


class Feedback:
    """The latest `most` answers by request, and how right those were whose truth is known. Thread-safe.

    prefix: what the ids begin with that this server gives out itself.
    """

    def __init__(self, most: int = 10_000, prefix: str = ""):
        self._most, self._prefix = most, prefix
        # a ring: every request pays for it, and an ordered dict of so many costs four times as much. Few are asked
        # for, so the index of the ring waits until one is.
        self._ids, self._answers, self._came = [""] * most, [()] * most, 0
        self._index: dict[str, int] = {}  # the number of the latest request with an id, up to number `_indexed`
        self._indexed = 0
        self._lock = threading.Lock()
        self.counts = dict.fromkeys(RESULTS, 0)
        self.windows = {name: SlidingWindow(WINDOW) for name in ("accuracy", "error", "coverage")}
        self._scored = 0
        self.checks: deque[dict] = deque(maxlen=WINDOW)  # the means after each CHECK scores, until they are looked at

    def remember(self, answers: list[tuple[str, list]]) -> None:
        """Keep what is needed of [(id of a request, its results), ...]. An id that comes again replaces the earlier."""
        with self._lock:
            for req_id, results in answers:
                place = self._came % self._most
                self._ids[place] = req_id
                self._answers[place] = [None if isinstance(result, Exception) else kept(result) for result in results]
                self._came += 1

    def _find(self, req_id: str) -> list | None:
        if len(self._index) > 2 * self._most:  # mostly of requests that are gone
            self._index, self._indexed = {}, 0
        for number in range(max(self._indexed, self._came - self._most), self._came):
            self._index[self._ids[number % self._most]] = number
        self._indexed = self._came
        number = self._index.get(req_id, -1)
        return self._answers[number % self._most] if 0 <= number >= self._came - self._most else None

    def join(self, truth: dict, model: object = None, dry: bool = False) -> str:
        """Score one answer by {"req_id", "label" or "value", "item" (its place in the list, default 0)}.

        One of RESULTS. Raises ValueError where the truth does not fit the answer. What is out of scope for the model
        is joined without a score: the accuracy of validation is of what is in scope. dry: change nothing.
        """
        req_id, item = truth["req_id"], truth.get("item", 0)
        with self._lock:
            answers = self._find(req_id)
            if answers is None:
                return "late" if self._prefix and req_id.startswith(self._prefix) else "unknown"
            if item >= len(answers):
                raise ValueError(f"item is {item}, and the request had {len(answers)}")
            if answers[item] is None:  # it had an error, or its truth is known already
                return "duplicate"
            if "label" in truth and not known(truth["label"], model):
                return "unknown_label"
            found = {} if outside(truth, model) else scores(answers[item], truth)
            if dry:
                return "joined"
            answers[item] = None
        for name, value in found.items():
            self.windows[name].push(value)
        self._scored += bool(found)
        if found and self._scored % CHECK == 0:
            self.checks.append(self.means())
        return "joined"

    def count(self, results: dict[str, int]) -> None:
        """Add to `counts`: not done by `join`, for of several workers all are asked, and one knows."""
        with self._lock:
            for result, n in results.items():
                self.counts[result] += n

    def state(self) -> dict:
        """Counts, and the means over the latest joined answers: {"accuracy": {"value", "n"}, ...}."""
        return {**self.counts, "remembered": min(self._came, self._most), **self.means()}

    def means(self) -> dict:
        """{"accuracy": {"value", "n"}, ...} of the latest joined answers, as far as there are any."""
        return {
            name: {"value": window.mean(), "n": len(window)} for name, window in self.windows.items() if len(window)
        }


def known(label: str | int, model: object) -> bool:
    """Whether a model has a class of this name or number, or calls so what is out of scope; any, if it tells none."""
    classes = getattr(model, "classes", None)
    if classes is None:
        return True
    return label < len(classes) if isinstance(label, int) else label in (*classes, getattr(model, "oos_label", ""))


def outside(truth: dict, model: object) -> bool:
    """Whether a truth says that its input was out of scope."""
    return "label" in truth and truth["label"] == getattr(model, "oos_label", None)


def kept(result: dict) -> tuple:
    """What `scores` needs of an answer."""
    return result.get("pred"), result.get("label"), result.get("lower"), result.get("upper")


def scores(answer: tuple, truth: dict) -> dict[str, float]:
    """{"accuracy": 0 or 1} for a label, {"error": mean |prediction - value|, "coverage": share} for numbers."""
    pred, label, lower, upper = answer
    if "label" in truth:
        wanted = truth["label"]
        known = pred if isinstance(wanted, int) and not isinstance(wanted, bool) else label
        if known is None or not isinstance(wanted, (str, int)):
            raise ValueError("label: these answers have none; wanted value")
        return {"accuracy": float(known == wanted)}
    value = np.atleast_1d(np.asarray(truth["value"], np.float64))
    if label is not None or pred is None:
        raise ValueError("value: these answers are classes; wanted label")
    guess = np.atleast_1d(np.asarray(pred, np.float64))
    if guess.shape != value.shape:
        raise ValueError(f"value: found {value.size} numbers, wanted the {guess.size} of the forecast")
    scores = {"error": float(np.abs(guess - value).mean())}
    if lower is not None and upper is not None:
        scores["coverage"] = float(((np.asarray(lower) <= value) & (value <= np.asarray(upper))).mean())
    return {name: score for name, score in scores.items() if math.isfinite(score)}
