"""Is a rate higher on the canary arm than on the stable arm? Tests that may be looked at after every request.

    tests = RateTests([Row(), Row(margin=0.05)])
    tests.update(stable, canary, share=0.01)    # counts since the last update, (rows, 2): [no, yes]
    tests.log_evidence()[0] >= log(1 / alpha)   # then row 0 is rejected, at whatever moment one looked

Each row tests H0: canary's rate <= stable's rate + margin, for an event that a request has or has not: it failed, it
was slower than a limit, it was given a certain class. Requests are dealt to the canary at random with the probability
`share`, so under H0 (margin 0) the event says nothing about the arm: given the event the arm still is canary with
probability `share`, whatever the rate is and however it changes over the day. Under the alternative "the rates are
p_s and p_c" it is canary with probability share * r / D, where r = p_c / p_s and D = share * r + 1 - share (for
requests without the event, r = (1 - p_c) / (1 - p_s)). The ratio of the two is the factor by which a bet on the
alternative grows:

    r / D for a canary request, 1 / D for a stable one; expectation 1 if p_c = p_s, below 1 if p_c < p_s

The wealth of such bets is a non-negative supermartingale under H0, whatever p_s is taken for the bet as long as it
comes from the past; here it is the rate of stable so far. By Ville's inequality it ever exceeds 1/alpha with a
probability of at most alpha. Bets on several alternatives (odds ratios `RARE` or `COMMON`) are averaged, which keeps
that; so are bets that start later, so that a candidate which is healthy first and breaks after a thousand requests is
still found at once. With a margin m both factors are divided by those of the bound p_s + m, which is exact for known
p_s and so near for a stable arm of many requests.

Rows that stand `alone` look at the canary's requests only, and compare with a fixed rate, or with stable's rate so far
taken as known: the factor is p_c / bound or (1 - p_c) / (1 - bound).

Sources: conditioning on the event: Lindon, Sanden, Shirikian, "Rapid regression detection in software deployments
through sequential testing" (KDD 2022), and Turner, Ly, Gruenwald, "Generic E-variables for exact sequential k-sample
tests that allow for optional stopping" (2024); predicting the arm: Podkopaev, Ramdas, "Sequential predictive two-sample
and independence testing" (2023); mixtures over alternatives: Robbins, "Statistical methods related to the law of the
iterated logarithm" (1970); over starting times: Shin, Ramdas, Rinaldo, "E-detectors" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Odds ratios that are bet on, for rare events (failures) and for common ones, and how the stake is shared: most on
# small ratios, which need every bit of evidence; a large one is found anyway.
RARE = (2.0, 3.5, 5.0, 8.0, 11.0, 18.0, 50.0, 1000.0)
COMMON = (1.2, 1.5, 1.75, 2.25, 3.0, 5.0, 12.0, 200.0)
STAKES = np.array([0.06, 0.24, 0.16, 0.20, 0.18, 0.07, 0.05, 0.04])
FIRST_STAKE = 0.9  # of the bets that start with the first request; the rest is for later ones
RESTART_EVERY = 20  # canary requests between two starts
STABLE_FIRST = 100  # stable requests before a row bets, if its event is not rare
RATE_LEAST = 1e-6
NOTHING = -1e300  # logarithm of no wealth, in numbers that JSON can hold
STATE = ("stable", "canary", "log_wealth", "starts", "unspent")


@dataclass(frozen=True)
class Row:
    """One test.

    margin: by how much the rate may be higher (negative: has to be lower). alone: see above. fixed: the rate that a row
    alone is compared with, None for stable's. rare: what is bet on are the odds ratios of rare events, and before
    stable is known its rate is taken for 1 % (else the row waits for STABLE_FIRST requests of it).
    """

    margin: float = 0.0
    alone: bool = False
    fixed: float | None = None
    rare: bool = False


class RateTests:
    """Many rows, updated together. Arrays are (rows,), (rows, odds) or (rows, odds, 2) for [no, yes]."""

    def __init__(self, rows: list[Row]):
        self.margin = np.array([row.margin for row in rows])
        self.fixed = np.array([np.nan if row.fixed is None else row.fixed for row in rows])
        self.alone = np.array([row.alone for row in rows])
        self.odds = np.array([RARE if row.rare else COMMON for row in rows])
        self.rare = np.array([row.rare for row in rows])
        self.stable = np.zeros((len(rows), 2))  # counts so far
        self.canary = np.zeros((len(rows), 2))
        self.log_wealth = np.full((len(rows), len(STAKES)), NOTHING)
        self.starts = np.zeros(len(rows), int)  # bets that were started
        self.unspent = np.ones(len(rows))
        self.share, self.known = -1.0, np.zeros(len(rows))  # for which `factors` was computed: it changes slowly

    def update(self, stable: np.ndarray, canary: np.ndarray, share: float) -> None:
        """Counts of requests since the last update, (rows, 2); share: the probability with which they became canary."""
        self._start_bets(self.canary.sum(1))
        known = self.stable.sum(1)
        if abs(share - self.share) > 1e-3 * share or (known > 1.02 * self.known).any():
            self.share, self.known, self.factors = share, known, self._factors(known, share)
        step_stable, step_canary = self.factors
        self.log_wealth += (step_stable @ stable[:, :, None] + step_canary @ canary[:, :, None])[:, :, 0]
        self.stable += stable
        self.canary += canary

    def _factors(self, known: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of what one stable and one canary request are worth now; nothing while stable is hardly known."""
        fixed = ~np.isnan(self.fixed)
        rate = np.where(fixed, self.fixed, (self.stable[:, 1] + 0.5) / (known + np.where(self.rare, 50.0, 1.0)))
        stable, canary = log_factors(rate, self.margin, np.where(self.alone, 0.0, share), self.odds)
        ready = (fixed | self.rare | (known >= STABLE_FIRST))[:, None, None]
        return stable * ready, canary * ready

    def _start_bets(self, canary: np.ndarray) -> None:
        """At the first request, and then every RESTART_EVERY ones: the k-th of those gets (1 - FIRST) / (k (k + 1))."""
        due = canary >= self.starts * RESTART_EVERY
        if due.any():
            k = np.maximum(self.starts, 1)
            stake = np.where(self.starts == 0, FIRST_STAKE, (1 - FIRST_STAKE) / (k * (k + 1.0)))
            started = np.logaddexp(self.log_wealth, np.log(stake)[:, None])
            self.log_wealth = np.where(due[:, None], started, self.log_wealth)
            self.unspent = np.where(due, self.unspent - stake, self.unspent)
            self.starts = self.starts + due

    def log_evidence(self) -> np.ndarray:
        """Natural logarithm of each row's wealth now, (rows,). It starts at 0."""
        top = self.log_wealth.max(1, keepdims=True).clip(0.0)
        bets = np.exp(self.log_wealth - top) @ STAKES
        return top[:, 0] + np.log(bets + self.unspent.clip(0.0) * np.exp(-top[:, 0]))

    def state(self) -> dict[str, list]:
        """Plain values for `restore`."""
        return {name: getattr(self, name).tolist() for name in STATE}

    def restore(self, state: dict[str, list]) -> None:
        """Go on where `state` was taken. KeyError or ValueError where it is of other rows."""
        for name in STATE:
            values = np.array(state[name], getattr(self, name).dtype)
            if values.shape != getattr(self, name).shape:
                raise ValueError(f"{name}: found the shape {values.shape}, wanted {getattr(self, name).shape}")
            setattr(self, name, values)

    def rates(self, row: int) -> dict:
        """What was counted for a row: requests and rate of each arm (None without requests)."""
        arms = {"stable": self.stable[row], "canary": self.canary[row]}
        return {
            arm: {"n": int(no + yes), "rate": round(float(yes / (no + yes)), 5) if no + yes else None}
            for arm, (no, yes) in arms.items()
        }


def log_factors(
    rate: np.ndarray, margin: np.ndarray, share: np.ndarray, odds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the factors of one stable and of one canary request, (rows, odds, 2) for [no, yes]."""
    rate = rate.clip(RATE_LEAST, 1 - RATE_LEAST)[:, None]
    bound = (rate + margin[:, None]).clip(RATE_LEAST, 1 - RATE_LEAST)
    odds = bound / (1 - bound) * odds
    share = share[:, None, None]

    def ratios(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = np.stack([(1 - p) / (1 - rate), p / rate], axis=2)
        return np.log(r), np.log1p(share * (r - 1))

    log_r, log_d = ratios(odds / (1 + odds))
    log_r0, log_d0 = ratios(bound)
    return log_d0 - log_d, (log_r - log_d) - (log_r0 - log_d0)
