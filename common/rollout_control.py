"""The rollout of a server, in the one process that decides: the server itself, or the supervisor of its workers.

    control = make_control(args, spread)        # None without --canary; spread(split) tells whoever deals requests
    control.asked("report", report)             # what common.canary saw
    control.asked("order", "promote")

Reads both checkpoints (their SHA-256 name the rollout); writes --rollout_state and the decisions beside it. Where the
candidate is a release, by its name (vision@3) or its content, a promotion becomes one in the registry, to the stage
that --model names, else to production.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.cli import UserError
from common.endpoints import RETRY
from common.http_wire import HttpError
from common.judge import ALPHA, Outcome
from common.log import file_sha256
from common.releases import CHECKPOINT, NAME, Releases, served_file
from common.rollout import RUNNING, Plan, Rollout

log = logging.getLogger(__name__)
ANSWERED = ("report", "split", "rollout", "order", "failed", "reloaded")  # what Control.asked takes


class Control:
    """Takes reports, makes decisions, and tells them to whoever has to know."""

    def __init__(self, args: argparse.Namespace, spread: Callable[[dict], None]):
        self.args, self.spread = args, spread
        shadow_off = tuple(name for name in args.guardrails if not (args.shadow and name == "latency"))
        plan = Plan(args.stages, args.stage_requests, shadow_off, args.max_disagreement, args.shadow)
        self.candidate, self.release = candidate_of(args)  # once: a name such as vision@latest may move
        files = {"stable": served_file(args), "candidate": self.candidate}
        models = {arm: _sha256(file) for arm, file in files.items()}
        path = args.rollout_state or state_file(args)
        self.rollout = Rollout(path, models, plan, args.model)
        self._settle(models["stable"])
        if self.rollout.status not in RUNNING:
            words = "%s: this candidate was %s before (%s) and is not rolled out anew; for that, move the file away"
            log.warning(words, path, self.rollout.status, self.rollout.why)

    def split(self) -> dict:
        """What whoever deals the requests has to know: the rollout's, and which file the candidate is."""
        return {**self.rollout.split(), "ckpt": self.candidate, "sha256": self.rollout.models["candidate"]}

    def _settle(self, served: str) -> None:
        """By the SHA-256 of what is served without a rollout: it may be the candidate, or what the registry chose."""
        rollout = self.rollout
        if served == rollout.models["candidate"] and rollout.status != "promoted":
            # the command of a service, started anew after its candidate became vision@production
            rollout.told = rollout.name
            rollout.settle("promoted", "the candidate is what is served already")
        elif served != rollout.models["candidate"] and rollout.told and rollout.status == "promoted":
            rollout.settle("rolled_back", f"{rollout.name} is another model now")

    def asked(self, what: str, value: object) -> object:
        """One of ANSWERED. Raises HttpError 409 for an order that makes no sense now."""
        if what == "report":
            self._take(value)
            self._told(self.rollout.decide())
        elif what == "order":
            try:
                self._told([self.rollout.order(value)])
            except ValueError as error:
                raise HttpError(409, str(error), RETRY) from error
        elif what == "failed" and (decision := self.rollout.fail(value)):
            self._told([decision])
        elif what == "reloaded" and self.rollout.told:
            self._reloaded()
        return self.split() if what in ("split", "report") else self.rollout.about()

    def _reloaded(self) -> None:
        before = self.rollout.status
        try:
            self._settle(Releases(self.args.registry).resolve(self.rollout.told)["sha256"])
        except UserError as error:
            log.error("the rollout stays %s: %s", before, error)
        if self.rollout.status != before:
            self.spread(self.split())

    def _take(self, report: dict) -> None:
        judge = self.rollout.judge
        groups = [
            (float(share), [Outcome(*outcome) for outcome in found]) for share, found in report["outcomes"].items()
        ]
        self.rollout.take(groups)
        for differ in report["pairs"]:
            judge.take_pair(differ)
        for name, take in (("labels", judge.take_labels), ("residuals", judge.take_residuals)):
            for canary, share, value in report[name]:
                take(np.array([canary]), np.array([value]), share)

    def _told(self, decisions: list[dict]) -> None:
        for decision in decisions:
            log.warning("rollout: %s: %s", decision["decision"], decision["why"])
            self.spread(self.split())
            if decision["decision"] == "promote":
                # in a thread: it reads the release's files anew
                asking = asyncio.get_running_loop().run_in_executor(None, self._tell_registry)
                asking.add_done_callback(self._registry_told)

    def _tell_registry(self) -> str:
        """The name of what is served, if the registry has the candidate under it from now on."""
        store, name, sha256 = Releases(self.args.registry), self.rollout.name, self.rollout.models["candidate"]
        same = [f"{entry['project']}@{entry['version']}" for entry in store.all() if entry["sha256"] == sha256]
        if not same:
            return ""  # a file that nobody registered
        stage = name.partition("@")[2]
        store.promote(self.release or same[-1], "production" if re.fullmatch("[0-9]*|latest", stage) else stage)
        return name if name and store.resolve(name)["sha256"] == sha256 else ""

    def _registry_told(self, asked: asyncio.Future) -> None:
        if error := asked.exception():
            trace = None if isinstance(error, UserError) else error
            log.error("%s is served, but the registry refused: %s", self.args.canary, error, exc_info=trace)
            self.rollout.why += f"; the registry refused: {error}"
        else:
            self.rollout.told = asked.result()
        self.rollout.save()
        self.spread(self.split())


def make_control(args: argparse.Namespace, spread: Callable[[dict], None]) -> Control | None:
    """By the flags. What was promoted, and not told to the registry, is what is served: args.ckpt becomes its file."""
    if not args.canary:
        return None
    control = Control(args, spread)
    if control.rollout.status == "promoted" and not control.rollout.told:
        args.ckpt, args.model = control.candidate, ""
    return control


def state_file(args: argparse.Namespace) -> Path:
    """Where the rollout is kept unless --rollout_state says so; projects that share a registry do not share it."""
    if args.model:
        return Path(args.registry) / f"rollout-{args.model.partition('@')[0]}.json"
    return Path(args.ckpt).with_name("rollout.json")


def candidate_of(args: argparse.Namespace) -> tuple[str, str]:
    """The checkpoint behind --canary, and the release that it is, by its version; empty where a file is named."""
    if not NAME.fullmatch(args.canary) or Path(args.canary).exists():
        return args.canary, ""
    store = Releases(args.registry)
    release = store.resolve(args.canary)
    return str(store.file(release, CHECKPOINT)), f"{release['project']}@{release['version']}"


def _sha256(path: str) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); --ckpt and --canary want two checkpoints"
        ) from error


def stage_list(text: str) -> tuple[float, ...]:
    """`type=` of --stages: rising percents such as 1,5,25,100."""
    stages = tuple(float(part) for part in text.split(","))
    rising = all(low < high for low, high in pairwise((0.0, *stages)))
    if not rising or stages[0] >= 100 or stages[-1] > 100:
        raise argparse.ArgumentTypeError(f"{text}: wanted percents that rise, from above 0 to at most 100")
    return stages


def guardrail_list(text: str) -> tuple[str, ...]:
    """`type=` of --guardrails."""
    names = tuple(text.split(","))
    if wrong := [name for name in names if name not in ALPHA]:
        raise argparse.ArgumentTypeError(f"{wrong[0]}: no such guardrail; wanted some of {','.join(ALPHA)}")
    return names
