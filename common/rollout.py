"""python -m common.rollout status --url http://localhost:8080 --token_file admin.token

A candidate's way from its first request to all of them, and back: `serve --ckpt stable.pt --canary candidate.pt`.

    rollout = Rollout("runs/vision/rollout.json", {"stable": sha256, "candidate": sha256}, Plan((1, 5, 25, 100)))
    rollout.share                               # 0.01: the part of the requests that the candidate gets now
    rollout.take([(0.01, outcomes), ...])       # by the share that held when they were dealt
    for decision in rollout.decide(): ...       # {"decision": "advance" | "rollback" | "promote", "why": ..., numbers}

A stage is left for the next one after `stage_requests` requests of the candidate in it, if no guardrail leans towards
"worse" and it is shown to fail hardly more often than stable (common.judge): by evidence, never by the clock, so too
little traffic holds. A violated guardrail rolls back from any stage. 100 % makes the candidate the stable model.
The state goes to the JSON file, whole or not at all, the decisions to the JSONL file beside it; a start with the same
two models goes on there. Where the registry was told of a promotion, it decides from then on what is served, also at
later starts, and the candidate is not rolled out anew.
The command asks a running server: status, promote (100 % now), hold, resume, rollback.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.cli import UserError, command_parser, run
from common.judge import ALPHA, Columns, Judge, Outcome
from common.log import JsonlLogger, plain

log = logging.getLogger(__name__)
FORMAT = 2
VERBS = ("promote", "hold", "resume", "rollback")
RUNNING, ENDED = ("running", "held"), ("promoted", "rolled_back")
BY_HAND = "by hand"
SAVE_S = 1.0  # how much evidence a killed process loses at most


@dataclass(frozen=True)
class Plan:
    """stages: percent of the requests, rising; stage_requests: of the candidate in each; shadow: it answers nobody."""

    stages: tuple[float, ...] = (1, 5, 25, 100)
    stage_requests: int = 400
    guardrails: tuple[str, ...] = tuple(ALPHA)
    max_disagreement: float = 0.2
    shadow: bool = False


def shown_share(status: str, share: float) -> float:
    """The part of the requests that the candidate answers, 0..1: all of them once it is the stable model."""
    return 1.0 if status == "promoted" else share


class Rollout:
    """The one place where decisions are made. Not thread-safe; touches nothing but its files."""

    def __init__(self, path: str | Path, models: dict[str, str], plan: Plan, name: str = ""):
        """name: what the registry calls the stable model, such as vision@production; empty for a file."""
        self.path, self.models, self.plan, self.name = Path(path), models, plan, name
        self.told = ""  # the same name, as soon as the registry takes the candidate for it
        self.judge = Judge(plan.guardrails, plan.max_disagreement)
        self.status, self.stage, self.in_stage, self.why = "running", 0, 0, ""
        self.salt = secrets.token_hex(8)  # of the split: kept, so that a user stays where he is
        self.saved, self.dirty = 0.0, False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = self._read()
        if found:
            self._restore(found)
        self._decision("resume" if found else "start", self.why or "a new pair of models")

    # -- state --

    @property
    def share(self) -> float:
        """The part of the requests that the candidate answers now, 0..1."""
        return self.plan.stages[self.stage] / 100 if self.status in RUNNING and not self.plan.shadow else 0.0

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def split(self) -> dict:
        """What whoever deals the requests has to know."""
        found = {"status": self.status, "share": self.share, "salt": self.salt, "why": self.why}
        return {**found, "shadow": self.plan.shadow, "told": self.told}

    def about(self) -> dict:
        """For people and programs: the state, and the numbers behind it."""
        waits = self.judge.ready() if self.status in RUNNING else []
        now = {"status": self.status, "stage": self.stage, "why": self.why}
        now["percent"] = 100 * shown_share(self.status, self.share)
        now |= {"requests_in_stage": self.in_stage, "waits_for": waits, "shadow": self.plan.shadow}
        plan = {"stages": list(self.plan.stages), "stage_requests": self.plan.stage_requests}
        return plain({**now, **plan, **self.models, "guardrails": self.judge.numbers()})

    def _read(self) -> dict | None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: is no rollout state ({error}); move it away to begin anew") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            return None
        models = found.get("models", {})
        told = self.name and found.get("told") == self.name and models.get("candidate") == self.models["candidate"]
        same = models == self.models and found.get("shadow") == self.plan.shadow
        return found if told or same else None

    def _restore(self, found: dict) -> None:
        try:
            self.status, self.salt, self.why = found["status"], found["salt"], found["why"]
            self.stage, self.in_stage = min(found["stage"], len(self.plan.stages) - 1), found["in_stage"]
            self.told = self.name if found.get("told") == self.name else ""
            self.judge.restore(found["judge"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: is no rollout state ({error!r}); move it away to begin anew") from error

    def save_sometimes(self) -> None:
        """Save what changed, at most once a second; without fsync, so that nobody waits for a disk."""
        if self.dirty and time.monotonic() - self.saved >= SAVE_S:
            self.save(sync=False)

    def save(self, sync: bool = True) -> None:
        """Write the state, whole or not at all. What cannot be written is told in the log; the rollout goes on."""
        state = {"format": FORMAT, "models": self.models, "status": self.status, "why": self.why, "salt": self.salt}
        state |= {"told": self.told, "percent": 100 * shown_share(self.status, self.share)}
        state |= {"shadow": self.plan.shadow, "stages": self.plan.stages}
        state |= {"stage": self.stage, "in_stage": self.in_stage, "judge": self.judge.state()}
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self.saved, self.dirty = time.monotonic(), False
        try:
            with open(draft, "w", encoding="utf-8") as file:
                json.dump(state, file)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(draft, self.path)
        except OSError as error:
            self.dirty = True
            log.error("%s: cannot be written (%s); a restart would go on from an earlier state", self.path, error)

    # -- evidence --

    def take(self, groups: Iterable[tuple[float, list[Outcome]]]) -> None:
        """Outcomes by the share that held when their requests were dealt."""
        for share, outcomes in groups:
            if outcomes:
                self.take_columns(self.judge.columns(outcomes), share)

    def take_columns(self, batch: Columns, share: float) -> None:
        """The same for outcomes that are arrays already."""
        if self.status in RUNNING:
            self.judge.take(batch, share)
            self.in_stage += int(batch.canary.sum()) if self.plan.shadow or share == self.share else 0
            self.dirty = True

    # -- decisions --

    def decide(self) -> list[dict]:
        """Roll back, advance or promote where the evidence says so; the decisions that were made."""
        if self.status not in RUNNING:
            return []
        if bad := self.judge.violated():
            return [self._end("rolled_back", "rollback", "; ".join(f"{name}: {words}" for name, words in bad.items()))]
        due = self.status == "running" and not self.plan.shadow and self.in_stage >= self.plan.stage_requests
        if not due or self.stage + 1 == len(self.plan.stages) or self.judge.ready():
            return []
        if self.plan.stages[self.stage + 1] >= 100:
            return [self._end("promoted", "promote", "every stage was passed")]
        self.stage, self.in_stage = self.stage + 1, 0
        return [self._decision("advance", f"to {self.plan.stages[self.stage]:g} %")]

    def order(self, verb: str, why: str = BY_HAND) -> dict:
        """An operator's promote, hold, resume or rollback. ValueError where it makes no sense now."""
        if self.ended:
            raise ValueError(f"the rollout has ended: {self.status} ({self.why})")
        if verb in ("promote", "rollback"):
            return self._end("promoted" if verb == "promote" else "rolled_back", verb, why)
        self.status = "held" if verb == "hold" else "running"
        return self._decision(verb, why)

    def settle(self, status: str, why: str) -> dict:
        """What was decided elsewhere, also after the end."""
        return self._end(status, "promote" if status == "promoted" else "rollback", why)

    def fail(self, why: str) -> dict | None:
        """The candidate cannot be served at all."""
        return None if self.ended else self._end("rolled_back", "rollback", why)

    def _end(self, status: str, decision: str, why: str) -> dict:
        share, self.status, self.why = self.share, status, why
        return self._decision(decision, why, percent=100 * share)

    def _decision(self, decision: str, why: str, **more: object) -> dict:
        record = {"ts": time.time(), "decision": decision, **self.about(), "why": why, **more}
        try:
            with JsonlLogger(self.path.with_suffix(".jsonl")) as lines:
                lines.log(record)
        except OSError as error:
            log.error("%s: a decision could not be written (%s): %s", self.path, error, record)
        self.save()
        return record


def ask(url: str, verb: str, token: str = "") -> dict:
    """GET /rollout for "status", else POST /rollout/VERB. Raises UserError with the server's words."""
    path = "/rollout" if verb == "status" else f"/rollout/{verb}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = None if verb == "status" else b""
    request = urllib.request.Request(url.rstrip("/") + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}{path}: {error.code} {error.read().decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{url}{path}: no answer ({error}); is this the address of a running server?") from error


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("verb", choices=("status", *VERBS), help="what to ask the server for")
    parser.add_argument("--url", default="http://localhost:8080", help="address of the server")
    parser.add_argument("--token_file", default="", help="file with its admin token, else $ML_E2E_ADMIN_TOKEN")
    args = parser.parse_args(argv)
    token = os.environ.get("ML_E2E_ADMIN_TOKEN", "")
    if args.token_file:
        try:
            token = Path(args.token_file).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"--token_file {args.token_file}: cannot be read ({error})") from error
    print(json.dumps(ask(args.url, args.verb, token.strip()), indent=2))


if __name__ == "__main__":
    run(main)
