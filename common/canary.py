"""The candidate beside the stable model in one server: whose turn a request is, and what becomes of it.

    canary = Canary(server)
    canary.start()                      # load the candidate, in a thread of its own
    if not canary.deal(job):            # True: the candidate has it, and stable stands by
        decoders.put(job)

The candidate has its own queue, model thread and decode threads, so one that hangs holds nobody up. What it gets is a
twin of the request; the request itself keeps its place in stable's queue. If the twin fails, is refused, or takes
longer than --canary_patience_ms, stable answers. Every outcome is reported to the rollout (common.rollout_control),
which says what part of the requests the candidate gets; everything here runs on the event loop.

An arm is chosen by a hash of X-Canary-Key, else of the request's id: retries stick. A key seen lately is no evidence.
In --shadow, and for up to 5 % of stable's requests, the twin begins when stable has answered, and answers nobody. A
shadow also gives way to what stable gets next (common.shadow), so where there are no gaps it sees some requests only.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time

from common.batcher import Job, MicroBatcher
from common.cli import UserError
from common.evidence import Evidence, outcome
from common.http_wire import HttpError
from common.outcomes import kind
from common.predictions import DecodePool, Prediction
from common.priority import yield_to_others
from common.rollout import BY_HAND, RUNNING
from common.rollout_control import make_control
from common.rollout_pages import ALARM
from common.server_pages import endpoints
from common.shadow import MOST_BEHIND, STEPS_BACK, Shadow

log = logging.getLogger(__name__)
MOST_COMPARED = 0.05  # of the requests, compared with stable's answers beside a canary
NEVER = {"status": "waiting", "share": 0.0, "salt": "", "why": "", "shadow": False, "told": ""}
ADOPTED = ("predictor", "results", "batch", "started_at", "ended_at", "decode_s", "data_hash", "is_list", "wanted")


class Canary:
    """Both arms of one process. Without --canary it does nothing."""

    def __init__(self, server):
        self.server, self.args = server, server.args
        self.patience_s = min(self.args.canary_patience_ms, self.args.timeout_ms / 2) / 1000
        self.split, self.predictor, self.shadow = NEVER, None, None
        self.waiting: dict[Prediction, tuple | None] = {}  # twins; of a shadow, with stable's outcome once it is known
        self.stuck = False  # whether the latest twin hung
        self.evidence = Evidence()
        self.batcher = self.decoders = None
        self.control = None if server.link else make_control(self.args, self.apply)  # else the supervisor has it

    # -- life --

    def start(self) -> None:
        """Load the candidate, unless its rollout has ended."""
        if self.args.canary:
            self.beginning = self.server.loop.create_task(self._begin())

    async def ask(self, what: str, value: object = None) -> object:
        """What the rollout answers; see common.rollout_control."""
        return await self.server.link.ask(what, value) if self.server.link else self.control.asked(what, value)

    def _tell(self, what: str, value: object) -> None:
        if self.server.link:
            with contextlib.suppress(HttpError):  # the supervisor is gone, and this worker is about to end
                self.server.link.tell(what, value)
        else:
            self.control.asked(what, value)

    async def _begin(self) -> None:
        split = self.split = await self.ask("split")
        if split["status"] not in RUNNING:
            return
        args, done, shadow = self.args, self._twins_done, split["shadow"]
        self.server.monitor.alarms.add(ALARM)
        self.batcher = MicroBatcher(done, max_batch=args.max_batch, window_ms=args.window_ms, queue=args.queue)
        self.decoders = DecodePool(self.batcher, done, 0 if shadow else args.decode_threads)
        self.batcher.start()
        self.decoders.start()
        self.batcher.call(self._load).add_done_callback(lambda future: self.server.tell_loop(self._loaded, future))

    def _load(self) -> object:
        if self.split["shadow"]:
            yield_to_others(STEPS_BACK)
        slot, ckpt = self.server.slot, self.split["ckpt"]
        predictor = slot.load_from(ckpt)
        slot.check_sha256(ckpt, self.split["sha256"])  # the file may have been replaced since the rollout began
        slot.warm_up(predictor)
        predictor.check_golden()
        return predictor

    def _loaded(self, future) -> None:
        if error := future.exception():
            trace = None if isinstance(error, UserError) else error
            log.error("the candidate cannot be served: %s", error, exc_info=trace)
            self._tell("failed", f"the candidate cannot be served: {error}")
        elif self.split["status"] != "rolled_back":
            self.predictor = future.result()
            # no predictor: it was promoted, and gives way to nobody
            self.shadow = Shadow(self.predictor, lambda: self.predictor and self.server.batcher.depth, self.patience_s)
            log.warning("candidate %s is ready", self.predictor.model_id)
            if self.split["status"] == "promoted":
                self._take_over()

    def busy(self) -> str:
        """Why another model cannot be loaded now; empty if it can."""
        under_way = self.split["status"] in RUNNING
        return "a rollout is under way: end it with POST /rollout/promote or /rollout/rollback" if under_way else ""

    def reloaded(self, done: dict) -> None:
        """As common.model_slot says it."""
        if done["model_id"] != done["was"] and ALARM.name in self.server.monitor.alarms:
            self.server.monitor.alarms.run({ALARM.name: (0.0, 1)})
        if self.args.canary:
            self._tell("reloaded", None)

    def stop(self, timeout_s: float) -> bool:
        """End its threads; False if one is still busy."""
        if self.control:
            self.control.rollout.save()
        return self.batcher is None or all([self.batcher.stop(timeout_s), self.decoders.stop(0.1)])

    # -- dealing --

    def deal(self, job: Prediction) -> bool:
        """True: the candidate's twin of the job will bring its answer, or put the job to stable's decoders."""
        split, shadow = self.split, self.split["shadow"]
        if self.predictor is None or not (split["share"] or shadow) or getattr(job.protocol, "version", ""):
            return False
        sent = job.request.headers.get("x-canary-key") or job.request.headers.get("x-request-id")
        digest = hashlib.blake2b(f"{split['salt']} {sent or job.connection.req_id}".encode(), digest_size=8).digest()
        # of a shadowed pair one counts, by a fair coin: two outcomes of one input are not independent
        at, share = int.from_bytes(digest, "big") / 2**64, 0.5 if shadow else split["share"]
        counted = 0.0 if sent and self.evidence.seen(digest) else share
        job.arm, answers = "stable", at < share and not shadow
        wanted = answers or shadow or at < share + min(share, MOST_COMPARED)
        if shadow and len(self.waiting) >= MOST_BEHIND:
            return False  # it misses this one, and neither arm is judged by it
        if not wanted or not self.batcher.reserve():
            if shadow and not self.stuck:
                return False  # the same: long lists fill its queue
            if at >= share:
                job.share = counted
            elif counted:  # it does not keep up
                job.canary_fault = "hung" if answers else ""
                self.evidence.add(counted, (True, "hung", 0.0, None, None))
            return False
        until = job.accepted_at + self._patience(job) if answers else math.inf
        twin = Prediction(job.connection, job.protocol, self.shadow if shadow else self.predictor, job.body, until)
        twin.twin, job.twin, twin.arm = job, twin, "canary" if answers else "shadow"
        (twin if at < share else job).share = counted
        self.waiting[twin] = None
        if answers:  # else `answered` does it: stable goes first
            self.decoders.put(twin)
        return answers

    def _patience(self, job: Prediction) -> float:
        """Seconds; time has to be left for stable where the client has less of it."""
        return min(self.patience_s, (job.deadline - job.accepted_at) / 2)

    # -- outcomes --

    def _twins_done(self, twins: list[Prediction]) -> None:
        self.server.tell_loop(self._take_twins, twins)

    def _take_twins(self, twins: list[Prediction]) -> None:
        self.server.watched = {}
        for twin in twins:
            if twin in self.waiting:
                self._take_twin(twin, kind(twin, twin.error))

    def _take_twin(self, twin: Prediction, fault: str | None) -> None:
        """fault None: neither arm's, the request itself is wrong; stable will say so."""
        job, held = twin.twin, self.waiting.pop(twin)
        if held:
            self.evidence.add(job.share, held)
        twin.abandoned, self.stuck = True, fault == "hung"
        self._record(twin, fault, time.monotonic())
        if twin.arm == "shadow":
            if fault == "":
                self.evidence.compare(job, twin)
        elif fault == "":
            job.arm, job.share = "canary", twin.share
            for name in ADOPTED:
                setattr(job, name, getattr(twin, name))
            self.server.batcher.release(job.places)
            self.server.answer(job, None)
        else:
            job.canary_fault = fault or ""
            self.server.decoders.put(job)

    def answered(self, job: Prediction, error: HttpError | None) -> dict:
        """Every answer of the server, before it is sent; what it says of its arm, if it has one."""
        if job.arm == "stable" and not job.canary_fault:
            fault, now = kind(job, error), time.monotonic()
            slow = now - job.accepted_at > self._patience(job)
            self._record(job, "hung" if slow and fault == "" else fault, now)
        if job.twin in self.waiting and job.twin.arm == "shadow":
            job.twin.accepted_at, job.twin.deadline = time.monotonic(), time.monotonic() + self.patience_s
            self.server.loop.call_soon(self.decoders.put, job.twin)  # the answer is sent first
        if error is None:
            self.evidence.remember(job)
        return {"arm": job.arm} if job.arm else {}

    def left(self, job: Job) -> None:
        """Its client hung up; on both arms that is an answer which took at least so long."""
        if isinstance(job, Prediction) and job.arm:
            twin = job.twin if job.twin in self.waiting else None
            if twin:
                del self.waiting[twin]
                twin.abandoned = True
                # what stands by has not begun, and holds one place: stable for a canary, else the shadow
                (self.server if twin.arm == "canary" else self).batcher.release(1)
                if self.split["shadow"]:
                    job.share = 0.0  # of this pair the twin's outcome cannot count either
            self._record(twin if twin and twin.arm == "canary" else job, "", time.monotonic())

    def _record(self, job: Prediction, fault: str | None, now: float) -> None:
        if fault is None:
            return
        arm, seconds = job.arm, now - job.accepted_at
        self.server.metrics.count("arm_requests_total", f'arm="{arm}",result="{fault or "ok"}"')
        self.server.metrics.observe("arm_seconds", seconds, f'arm="{arm}"')
        if job.share and self.split["shadow"] and job.twin in self.waiting:
            self.waiting[job.twin] = outcome(job, fault, seconds)  # told before its twin's, it would speak for stable
        elif job.share:
            self.evidence.add(job.share, outcome(job, fault, seconds))

    def tick(self, now: float) -> None:
        """Twins that take too long or that nobody waits for any more; then report."""
        for twin in [twin for twin in self.waiting if twin.deadline <= now]:
            self._take_twin(twin, "hung")
        if report := self.evidence.take():
            self._tell("report", report)
        if self.control:
            self.control.rollout.save_sometimes()

    # -- what the rollout says --

    def apply(self, split: dict) -> None:
        """A decision was made."""
        before, self.split = self.split["status"], split
        if split["status"] == "promoted":
            self.args.model = split["told"]  # what a reload looks up
        if split["status"] == before or before not in RUNNING:
            return
        if split["status"] == "rolled_back":
            self._roll_back(split["why"])
        elif split["status"] == "promoted" and self.predictor:  # else as soon as it is loaded
            self._take_over()

    def _take_over(self) -> None:
        candidate, self.predictor = self.predictor, None
        # in stable's thread; what the candidate's own still has, it will answer
        taken = self.server.batcher.call(lambda: self.server.slot.take(candidate, self.split["ckpt"]))
        taken.add_done_callback(lambda future: self.server.tell_loop(self._taken_over, future))

    def _roll_back(self, why: str) -> None:
        self.predictor = None
        for twin in list(self.waiting):
            self._take_twin(twin, None)
        self.batcher.stop(0)
        if why != BY_HAND:
            self.server.monitor.alarms.run({ALARM.name: (1.0, 1, {"why": why})})

    def _taken_over(self, future) -> None:
        if error := future.exception():
            log.error("the candidate could not take over, stable goes on: %s", error, exc_info=error)
            return
        self.server.endpoints = endpoints(self.server)
