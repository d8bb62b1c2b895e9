"""What the two arms of a rollout did, kept until the rollout is told of it.

    evidence = Evidence()
    evidence.seen(b"a user")                            # True: lately, so the request is none
    evidence.add(0.05, outcome(job, "", 0.012))         # by the share that held when it was dealt
    evidence.compare(job, twin)
    evidence.remember(job)
    evidence.labelled({"req_id": "abc-1", "label": "mug"})
    report = evidence.take()                            # {"outcomes", "pairs", "labels", "residuals"}, or None

Bounded: REMEMBERED keys, and as many answers that wait for their labels. Not thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from common.feedback import kept, scores
from common.outcomes import bad, differ, shown
from common.predictions import Prediction

REMEMBERED = 10_000


def outcome(job: Prediction, fault: str, seconds: float) -> tuple:
    """As common.judge takes it; fault as common.outcomes.kind says it."""
    return (job.arm != "stable", fault, round(seconds * 1000, 3), *shown(job, fault))


class Evidence:
    """Of one process."""

    def __init__(self):
        self.keys: OrderedDict[bytes, bool] = OrderedDict()
        self.answers: OrderedDict[str, tuple] = OrderedDict()
        self.report = _empty()

    def seen(self, key: bytes) -> bool:
        """Whether this key came lately."""
        before = key in self.keys
        if not before:
            _keep(self.keys, key, True)
        return before

    def add(self, share: float, one: tuple) -> None:
        """An outcome of an arm."""
        self.report["outcomes"][str(share)].append(one)

    def compare(self, job: Prediction, twin: Prediction) -> None:
        """Whether the answers to one request differ, where both arms have some."""
        if job.ended_at and twin.ended_at and not bad(job) and not bad(twin):
            self.report["pairs"].append(any(differ(*pair) for pair in zip(job.results, twin.results, strict=True)))

    def remember(self, job: Prediction) -> None:
        """An answer whose label may come later."""
        if job.share and isinstance(job.results[0], dict):
            _keep(self.answers, job.connection.req_id, (job.arm == "canary", job.share, kept(job.results[0])))

    def labelled(self, truth: dict) -> None:
        """What turned out to be true of an answer, as POST /feedback brings it."""
        found = self.answers.pop(truth["req_id"], None) if truth.get("item", 0) == 0 else None
        if found:
            canary, share, answer = found
            score = scores(answer, truth)
            if "accuracy" in score:
                self.report["labels"].append((canary, share, score["accuracy"] == 0))
            elif "error" in score:
                self.report["residuals"].append((canary, share, score["error"]))

    def take(self) -> dict | None:
        """What came since the last time."""
        if not any(self.report.values()):
            return None
        report, self.report = self.report, _empty()
        return report


def _empty() -> dict:
    return {"outcomes": defaultdict(list), "pairs": [], "labels": [], "residuals": []}


def _keep(held: OrderedDict, key: object, value: object) -> None:
    held[key] = value
    if len(held) > REMEMBERED:
        held.popitem(last=False)
