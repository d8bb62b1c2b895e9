"""What became of a request, as the rollout's judge wants to know it.

kind(job, error)            # "" good, "failed", "non-finite", "hung", "refused"; None: the request itself was wrong
shown(job, "")              # ("mug", 0.93): what the answer says, and how sure the model is
differ(stable, canary)      # whether two answers to one input say different things
"""

from __future__ import annotations

from common.batcher import NotFinite
from common.http_wire import HttpError
from common.judge import REFUSED
from common.predictions import Prediction


def bad(job: Prediction) -> bool:
    """Whether an item has no answer."""
    return job.error is not None or any(isinstance(result, Exception) for result in job.results)


def kind(job: Prediction, error: HttpError | None) -> str | None:
    """The fault of whoever worked on the job: "" none, None where the request itself was wrong, else as in Outcome."""
    found = [error] if error else [result for result in job.results if isinstance(result, Exception)]
    if not found:
        return ""
    if any(isinstance(one, NotFinite) for one in job.results):
        return "non-finite"
    statuses = [getattr(one, "status", 500) for one in found]
    if 504 in statuses:
        return "hung"
    if 500 in statuses:
        return "failed"
    return REFUSED if 422 in statuses else None


def shown(job: Prediction, fault: str) -> tuple[str | None, float | None]:
    """(label, confidence) of the first item; for intervals their width stands for the confidence."""
    first = job.results[0] if job.results and not fault else None
    if not isinstance(first, dict):
        return None, None
    label, confidence = first.get("label"), first.get("prob", first.get("conf"))
    lower, upper = first.get("lower"), first.get("upper")
    if confidence is None and isinstance(lower, float) and isinstance(upper, float):
        confidence = lower - upper
    return None if label is None else str(label), confidence


def differ(stable: dict, canary: dict) -> bool:
    """Another class; or a number outside of stable's interval, or off by a thousandth where it has none."""
    if "label" in stable:
        return stable["label"] != canary.get("label")
    one, two = stable.get("pred"), canary.get("pred")
    if not isinstance(one, (int, float)) or not isinstance(two, (int, float)):
        return one != two
    if isinstance(stable.get("lower"), (int, float)):
        return not stable["lower"] <= two <= stable["upper"]
    return abs(one - two) > 1e-3 * max(abs(one), 1e-9)
