"""Is the candidate worse than the stable model? Guardrails over two arms of traffic, judged after every request.

    judge = Judge()
    judge.take(columns(outcomes), share=0.05)   # outcomes of requests that became canary with probability 0.05
    judge.violated()                            # {} or {"errors": "canary 5.00 % of 120, stable 0.42 % of 11880; ..."}

A guardrail is one or more rows of `common.sequential`, their wealth averaged; it is violated when that exceeds
1 / alpha. The alphas of `ALPHA` add up to 0.01, so a candidate that is as good as stable is rolled back with a
probability of at most 1 % however long and however often one looks. What each row compares, always between requests of
the same time:

    errors          the model raised, hung, or gave something that is not finite
    refusals        the model's decode refused the input
    latency         slower than stable's running median, p90 and p99; the canary may take 2 ms or a tenth longer
    mix             the share of each of stable's nine most frequent classes and of the rest, up or down by > 5 points
    confidence      below stable's running p10 and p50, above its p50 and p90, by > 10 points of rank
    disagreement    the two models differ on the same input more often than the limit
    feedback        wrong by the label that came later; for numbers, residuals above stable's running p50 and p90

Margins keep a better model from being rolled back for being different. Two rows are not guardrails but what a stage
needs to advance: evidence (level 5 % each) that the canary fails at most 3 points, and exceeds stable's p99 at most
1 point more often than stable. So a slow tail, which takes the most requests to tell, cannot pass before it is found.
A guardrail whose wealth is `LEANS` or more holds; below that is one lone fault of the canary, which may never be
outweighed.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from common.sequential import RateTests, Row

ALPHA = {
    "errors": 0.005,
    "refusals": 0.0003,
    "latency": 0.002,
    "mix": 0.0004,
    "confidence": 0.0003,
    "disagreement": 0.0003,
    "feedback": 0.0017,
}
SHOWN_ALPHA = 0.05
FAILS_MARGIN, SLOW_MARGIN = 0.03, 0.01  # what has to be excluded before a stage is left
FAULTS = ("errors", "refusals")
LEANS = dict.fromkeys(ALPHA, 2.0) | dict.fromkeys(FAULTS, 32.0)
LATENCY_FACTOR, LATENCY_MS = 1.1, 2.0  # what the canary may be slower, the more lenient of the two
MIX_MARGIN, CONFIDENCE_MARGIN = 0.05, 0.1
CLASSES = 10  # slots of the mix, the last one for all other classes
WINDOW, FIRST, REFRESH = 2000, 200, 200  # stable's values: kept, needed, and between two looks at their quantiles
REFUSED, NO_LABEL = "refused", -1
MIX = 7  # first row of the mix
IN_TIME = MIX + 2 * CLASSES  # last row of the answers
TESTS = ("faults", "answers", "labels", "pairs")
ROWS = {  # guardrail: its tests, their rows, and what each row's event is called
    "errors": ("faults", slice(0, 1), ("failed",)),
    "refusals": ("faults", slice(1, 2), ("refused",)),
    "latency": ("answers", slice(0, 3), ("slower than p50", "slower than p90", "slower than p99")),
    "confidence": ("answers", slice(3, 7), tuple(f"confidence {at}" for at in ("< p10", "< p50", "> p50", "> p90"))),
    "mix": ("answers", slice(MIX, MIX + 2 * CLASSES), ()),
    "disagreement": ("pairs", slice(0, 1), ("the models differ",)),
    "feedback": ("labels", slice(0, 3), ("wrong", "residual > p50", "residual > p90")),
}


class Outcome(NamedTuple):
    """One request. fault: "", "failed", "non-finite", "hung" or "refused"; label, confidence: of its first item."""

    canary: bool
    fault: str
    latency_ms: float
    label: str | None = None
    confidence: float | None = None


class Columns(NamedTuple):
    """Outcomes as arrays (requests,): fault 0 none, 1 error, 2 refused; label an index or NO_LABEL; NaN for unknown."""

    canary: np.ndarray
    fault: np.ndarray
    latency_ms: np.ndarray
    label: np.ndarray
    confidence: np.ndarray


class Window:
    """Quantiles of the latest values of stable; they change every REFRESH values, and come from the past only."""

    def __init__(self, quantiles: tuple[float, ...]):
        self.quantiles, self.limits = quantiles, None
        self.values, self.seen, self.looked = np.zeros(WINDOW), 0, 0

    def push(self, values: np.ndarray) -> None:
        """Add values (n,), oldest first."""
        values = values[-WINDOW:]
        self.values[(self.seen + np.arange(len(values))) % WINDOW] = values
        self.seen += len(values)
        if self.seen >= FIRST and self.seen - self.looked >= REFRESH:
            self.limits = np.quantile(self.values[: min(self.seen, WINDOW)], self.quantiles)
            self.looked = self.seen


class Judge:
    """Evidence about one candidate against one stable model. Not thread-safe."""

    def __init__(self, guardrails: tuple[str, ...] = tuple(ALPHA), max_disagreement: float = 0.2):
        self.guardrails = guardrails
        rare, mix, rank = Row(rare=True), Row(margin=MIX_MARGIN), Row(margin=CONFIDENCE_MARGIN)
        self.faults = RateTests([rare, rare, Row(-FAILS_MARGIN, alone=True)])
        in_time = Row(-SLOW_MARGIN, alone=True)
        self.answers = RateTests([Row(), Row(), rare, *[rank] * 4, *[mix] * (2 * CLASSES), in_time])
        self.labels = RateTests([Row()] * 3)
        self.pairs = RateTests([Row(alone=True, fixed=max_disagreement)])
        self.latency, self.confidence = Window((0.5, 0.9, 0.99)), Window((0.1, 0.5, 0.9))
        self.residual = Window((0.5, 0.9))
        self.known: dict[str, int] = {}  # label: its index in columns
        self.counts = Counter()  # stable's labels, until the slots of the mix are given away
        self.slots: np.ndarray | None = None  # index of a label: its slot

    def columns(self, outcomes: list[Outcome]) -> Columns:
        """As arrays."""
        labels = [NO_LABEL if o.label is None else self.known.setdefault(o.label, len(self.known)) for o in outcomes]
        return Columns(
            np.array([o.canary for o in outcomes], bool),
            np.array([0 if not o.fault else 2 if o.fault == REFUSED else 1 for o in outcomes]),
            np.array([o.latency_ms for o in outcomes]),
            np.array(labels),
            np.array([np.nan if o.confidence is None else o.confidence for o in outcomes], float),
        )

    def take(self, batch: Columns, share: float) -> None:
        """Requests that became canary with the probability `share`, at most one update's worth of the past."""
        canary, good = batch.canary, batch.fault == 0
        share_of_answers = self._share_of_answers(share)
        _update(self.faults, np.stack([batch.fault == 1, batch.fault == 2, good]), True, canary, share)
        yes = np.zeros((len(self.answers.margin), len(canary)), bool)
        known = np.zeros_like(yes)
        if self.latency.limits is not None:
            lenient = np.minimum(batch.latency_ms - LATENCY_MS, batch.latency_ms / LATENCY_FACTOR)
            yes[:3] = np.where(canary, lenient, batch.latency_ms) > self.latency.limits[:, None]
            yes[IN_TIME] = ~yes[2]
            known[:3] = known[IN_TIME] = good
        if self.confidence.limits is not None:
            low, middle, high = self.confidence.limits
            seen = batch.confidence
            yes[3:7], known[3:7] = [seen < low, seen < middle, seen > middle, seen > high], good & ~np.isnan(seen)
        if self.slots is not None:
            yes[MIX : MIX + CLASSES] = self._slot(batch.label) == np.arange(CLASSES)[:, None]
            yes[MIX + CLASSES : IN_TIME] = ~yes[MIX : MIX + CLASSES]
            known[MIX:IN_TIME] = good & (batch.label != NO_LABEL)
        _update(self.answers, yes, known, canary, share_of_answers)
        self._remember(batch, good & ~canary)

    def _share_of_answers(self, share: float) -> float:
        """The canary's part of the answered requests: `share`, but for an arm that has answered less often so far."""
        stable, canary = self.faults.stable[2], self.faults.canary[2]
        of_stable = (stable[1] + 1) / (stable.sum() + 1)
        of_canary = (canary[1] + 50 * of_stable) / (canary.sum() + 50)
        return share * of_canary / (share * of_canary + (1 - share) * of_stable)

    def _slot(self, label: np.ndarray) -> np.ndarray:
        slots = np.zeros(0, int) if self.slots is None else self.slots
        if not len(slots):
            return np.full(label.shape, CLASSES - 1)
        return np.where((label >= 0) & (label < len(slots)), slots[label.clip(0, len(slots) - 1)], CLASSES - 1)

    def _remember(self, batch: Columns, stable: np.ndarray) -> None:
        self.latency.push(batch.latency_ms[stable])
        confidence = batch.confidence[stable]
        self.confidence.push(confidence[~np.isnan(confidence)])
        if self.slots is None:
            self.counts.update(batch.label[stable & (batch.label != NO_LABEL)].tolist())
            if self.counts.total() >= FIRST:
                self.slots = np.full(max(self.counts) + 1, CLASSES - 1)
                for slot, (label, _) in enumerate(self.counts.most_common(CLASSES - 1)):
                    self.slots[label] = slot

    def take_labels(self, canary: np.ndarray, wrong: np.ndarray, share: float) -> None:
        """Answers (n,) whose labels came; share: as it was when the requests were dealt."""
        yes, known = np.zeros((3, len(canary)), bool), np.zeros((3, len(canary)), bool)
        yes[0], known[0] = wrong, True
        _update(self.labels, yes, known, canary, share)

    def take_residuals(self, canary: np.ndarray, residual: np.ndarray, share: float) -> None:
        """Forecasts (n,) whose true values came: |value - pred|."""
        if self.residual.limits is not None:
            yes, known = np.zeros((3, len(canary)), bool), np.ones((3, len(canary)), bool)
            yes[1:], known[0] = residual > self.residual.limits[:, None], False
            _update(self.labels, yes, known, canary, share)
        self.residual.push(residual[~canary])

    def take_pair(self, differ: bool) -> None:
        """Both models answered the same input."""
        one = np.ones((1, 1), bool)
        _update(self.pairs, one & differ, one, one[0], 0.0)

    def state(self) -> dict:
        """Plain values for `restore`. The windows of stable's values are not kept: they fill again."""
        slots = None if self.slots is None else self.slots.tolist()
        tests = {name: getattr(self, name).state() for name in TESTS}
        return {**tests, "known": self.known, "slots": slots}

    def restore(self, state: dict) -> None:
        """Go on where `state` was taken. KeyError, TypeError or ValueError where it is none."""
        for name in TESTS:
            getattr(self, name).restore(state[name])
        self.known = dict(state["known"])
        self.slots = None if state["slots"] is None else np.array(state["slots"])

    def evidence(self) -> dict[str, float]:
        """Natural logarithm of each guardrail's wealth, and of what has to be shown."""
        tests = {name: getattr(self, name).log_evidence() for name in TESTS}
        found = {name: _log_mean(tests[of][self._rows(name)]) for name, (of, _, _) in ROWS.items()}
        shown = {"fails": float(tests["faults"][2]), "slow": float(tests["answers"][IN_TIME])}
        return {name: found[name] for name in self.guardrails} | shown

    def _rows(self, name: str) -> slice:
        """The rows of a guardrail. What becomes known of a model's answers is of one kind, labels or numbers."""
        rows = ROWS[name][1]
        return slice(0, 1) if name == "feedback" and self.labels.stable[0].any() else rows

    def violated(self) -> dict[str, str]:
        """Guardrails whose evidence is complete, with the numbers in words."""
        highest = max(getattr(self, name).log_wealth.max() for name in TESTS)
        if highest + np.log(2) < -np.log(max(ALPHA.values())):  # as nearly always: no wealth can be so high
            return {}
        found = self.evidence()
        bad = [name for name in self.guardrails if found[name] >= -np.log(ALPHA[name])]
        return {name: self._words(name, found[name]) for name in bad}

    def ready(self) -> list[str]:
        """What still speaks against more traffic; empty if nothing does."""
        found = self.evidence()
        open_ = [f"{name} leans towards worse" for name in self.guardrails if self._leans(name, found[name])]
        if found["fails"] < -np.log(SHOWN_ALPHA):
            open_.append(f"not yet shown to fail at most {FAILS_MARGIN:.0%} more often than stable")
        if "latency" in self.guardrails and found["slow"] < -np.log(SHOWN_ALPHA):
            open_.append(f"not yet shown to exceed stable's p99 at most {SLOW_MARGIN:.0%} more often than stable")
        return open_

    def _leans(self, name: str, evidence: float) -> bool:
        """Faults may stay away for good, and what their absence once hinted at must not hold the candidate for ever."""
        if name in FAULTS:
            of, rows, _ = ROWS[name]
            stable, canary = (getattr(self, of).rates(rows.start)[arm]["rate"] or 0.0 for arm in ("stable", "canary"))
            if canary <= stable:
                return False
        return evidence >= np.log(LEANS[name])

    def numbers(self) -> dict[str, dict]:
        """By guardrail: its wealth `e`, what it needs, and the counts and rates behind its strongest row."""
        found = self.evidence()
        return {
            name: {"e": round(min(float(np.exp(min(found[name], 700.0))), 1e12), 4), "needs": round(1 / ALPHA[name], 1)}
            | self._strongest(name)
            for name in self.guardrails
        }

    def _strongest(self, name: str) -> dict:
        """The row that speaks most for a violation."""
        of, rows, events = ROWS[name]
        tests = getattr(self, of)
        best = int(tests.log_evidence()[rows].argmax())
        event = events[best] if events else self._class_event(best)
        return {"event": event, **tests.rates(rows.start + best)}

    def _class_event(self, row: int) -> str:
        held = [label for label, index in self.known.items() if self._slot(np.array(index)) == row % CLASSES]
        which = repr(held[0]) if row % CLASSES < CLASSES - 1 and held else "another class"
        return f"{'not ' if row >= CLASSES else ''}{which}"

    def _words(self, name: str, log_e: float) -> str:
        about = self._strongest(name)
        arms = [f"{arm} {_percent(about[arm]['rate'])} of {about[arm]['n']}" for arm in ("canary", "stable")]
        return (
            f"{about['event']}: {', '.join(arms)}; evidence {np.exp(min(log_e, 50.0)):.0f}, limit {1 / ALPHA[name]:.0f}"
        )


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f} %"


def _log_mean(values: np.ndarray) -> float:
    return float(np.logaddexp.reduce(values) - np.log(len(values)))


def _update(tests: RateTests, yes: np.ndarray, known: np.ndarray | bool, canary: np.ndarray, share: float) -> None:
    """yes, known: (rows, requests); a request counts for a row only where its event is known."""
    arms = np.stack([~canary, canary], axis=1).astype(np.float64)
    seen, happened = (np.broadcast_to(one, yes.shape) @ arms for one in (known, yes & known))
    stable, canary = np.stack([seen - happened, happened]).transpose(2, 1, 0)
    tests.update(stable, canary, share)
