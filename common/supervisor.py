"""Several server processes on one port (--workers N): started, watched and ended by one that serves nothing itself.

    code = asyncio.run(Supervisor(args).run())

Each worker is this process's own command, started again with a line to the supervisor in its environment; the kernel
spreads connections over them (SO_REUSEPORT). A worker that dies is started anew, after a pause that grows while it
keeps dying. SIGTERM and SIGINT end all, SIGHUP reloads one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time

from common.endpoints import RETRY
from common.http_wire import HttpError
from common.metrics import merged
from common.releases import served_file
from common.rollout_control import ANSWERED as CONTROL
from common.rollout_control import make_control
from common.workers import SETTINGS, Peer

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between a worker's end and its next start
STEADY_S = 60.0  # a worker that lived so long starts again after the first pause
ANSWER_S = 1.0  # a worker that takes longer for its metrics counts with its last ones
KILL_S = 5.0  # after the drain time, for what has not ended by itself


class Worker:
    """One of the processes."""

    def __init__(self, number: int):
        self.number, self.pause = number, FIRST_PAUSE_S
        self.process: asyncio.subprocess.Process | None = None
        self.peer: Peer | None = None
        self.ready, self.snapshot = False, None


class Supervisor:
    """Starts `args.workers` workers and keeps that many alive until it is told to stop."""

    def __init__(self, args: argparse.Namespace):
        self.control = make_control(args, self._spread)
        self.args, self.ckpt = args, ""  # ckpt: what is served in place of --ckpt and --model
        if self.control:
            self._keep(self.control.rollout.split())
        self.workers = [Worker(number) for number in range(args.workers)]
        self.past: dict = merged([])  # what workers counted that are no more
        self.restarts, self.code = 0, 0
        self.said: set[str] = set()
        self.reloading = False

    async def run(self) -> int:
        self.stopping, self.loop = asyncio.Event(), asyncio.get_running_loop()
        with reserved_port(self.args.host, self.args.port) as port:
            self.port = port.getsockname()[1]
            for stop in (signal.SIGTERM, signal.SIGINT):
                self.loop.add_signal_handler(stop, self.stopping.set)
            self.loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
            lives = [self.loop.create_task(self._keep_alive(worker)) for worker in self.workers]
            watch = self.loop.create_task(self._watch())
            await self.stopping.wait()
            watch.cancel()
            for worker in self.workers:
                self._signal(worker, signal.SIGTERM)
            _, late = await asyncio.wait(lives, timeout=self.args.drain_s + KILL_S)
            for worker in self.workers if late else []:
                self._signal(worker, signal.SIGKILL)
            await asyncio.gather(*lives)
        if self.control:
            self.control.rollout.save()
        return self.code

    # -- the workers' lives --

    async def _keep_alive(self, worker: Worker) -> None:
        while not self.stopping.is_set():
            started = time.monotonic()
            code = await self._live(worker)
            if self.stopping.is_set():
                self.code = self.code or (code != 0)
            elif "ready" not in self.said:  # it never worked: the fault is in the model or in the flags
                self.code = 1
                self.stopping.set()
            else:
                worker.pause = FIRST_PAUSE_S if time.monotonic() - started > STEADY_S else worker.pause
                log.error("worker %d ended with %d; it starts again in %.1f s", worker.number, code, worker.pause)
                self.restarts += 1
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), worker.pause)
                worker.pause = min(worker.pause * 2, LONGEST_PAUSE_S)

    async def _live(self, worker: Worker) -> int:
        """From start to end of one process; its exit code."""
        ours, theirs = socket.socketpair()
        settings = {"fd": theirs.fileno(), "port": self.port, "ckpt": self.ckpt}
        threads = max(1, (os.cpu_count() or 1) // len(self.workers))
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, SETTINGS: json.dumps(settings)}
        with theirs:
            command = [sys.executable, *sys.orig_argv[1:]]
            # in a session of its own: Ctrl-C comes to the supervisor, which passes it on once
            worker.process = await asyncio.create_subprocess_exec(
                *command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True
            )
        worker.peer = Peer(lambda what, value: self._asked(worker, what, value), lambda: None)
        await worker.peer.open(ours)
        code = await worker.process.wait()
        worker.ready = False
        if worker.snapshot:
            self.past = merged([self.past, {**worker.snapshot, "gauges": {}}])
            worker.snapshot = None
        return code

    def _signal(self, worker: Worker, number: int) -> None:
        if worker.process and worker.process.returncode is None:
            worker.process.send_signal(number)

    # -- what the workers ask --

    async def _asked(self, worker: Worker, what: str, value: object) -> object:
        if what == "metrics":
            return await self._metrics(worker, value)
        if what == "reload":
            return await self._reload(value)
        if what in CONTROL:
            return self.control.asked(what, value)
        if what == "gather":
            return await self._gather(**value)
        if what == "ready":
            worker.ready = True
        if what == "listening" or all(other.ready for other in self.workers):
            self._say(what, str(value))
        return None

    def _say(self, event: str, words: str) -> None:
        """Once: when the first worker listens, and when all are ready."""
        if event not in self.said:
            self.said.add(event)
            print(words, flush=True)

    async def _metrics(self, asking: Worker | None, own: dict | None) -> list[dict]:
        async def newest(worker: Worker) -> None:
            if worker is asking:
                worker.snapshot = own
            elif worker.peer:
                worker.snapshot = await asyncio.wait_for(worker.peer.ask("snapshot"), ANSWER_S)

        # one that does not answer in time counts with its last numbers
        await asyncio.gather(*(newest(worker) for worker in self.workers), return_exceptions=True)
        restarts = {"counts": {"worker_restarts_total": {"": self.restarts}}, "histograms": {}, "gauges": {}}
        return [self.past, restarts, *(worker.snapshot for worker in self.workers if worker.snapshot)]

    async def _gather(self, what: str, value: object = None) -> list:
        """The answers of all workers that give one in time. Raises the HttpError of one that refuses."""
        asked = [asyncio.wait_for(worker.peer.ask(what, value), ANSWER_S) for worker in self.workers if worker.peer]
        found = await asyncio.gather(*asked, return_exceptions=True)
        refusals = [error for error in found if isinstance(error, HttpError) and error.status != 503]
        if refusals:
            raise refusals[0]
        return [answer for answer in found if not isinstance(answer, BaseException)]

    def _spread(self, split: dict) -> None:
        """A decision about the candidate, to all workers at once."""
        self._keep(split)
        for worker in self.workers:
            with contextlib.suppress(HttpError):  # it is gone; the next one asks when it starts
                if worker.peer:
                    worker.peer.tell("apply", split)

    def _keep(self, split: dict) -> None:
        if split["status"] == "promoted":
            self.ckpt = "" if split["told"] else self.control.candidate

    async def _watch(self) -> None:
        """So that little is lost of what a worker counted when it dies."""
        while True:
            await asyncio.sleep(1.0)
            if self.control:
                self.control.rollout.save_sometimes()
            await self._metrics(None, None)

    # -- another model --

    async def _reload(self, wanted: dict) -> dict:
        """One worker after the other; where one refuses, those before it go back. Raises HttpError."""
        starting = [worker.number for worker in self.workers if not worker.ready]
        if self.reloading or starting:
            why = "a reload is under way" if self.reloading else f"worker {starting[0]} is still starting"
            raise HttpError(409, why, RETRY)
        self.reloading, done = True, []
        try:
            for worker in self.workers:
                answer = await worker.peer.ask("reload", wanted)
                done.append(worker)
        except HttpError:
            for worker in done if wanted.get("ckpt") else []:
                await worker.peer.ask("reload", {"ckpt": self.ckpt or served_file(self.args)})
            raise
        finally:
            self.reloading = False
        self.ckpt = wanted.get("ckpt", self.ckpt)
        return {**answer, "workers": len(done)}

    def _reload_by_signal(self) -> None:
        async def reload() -> None:
            try:
                await self._reload({})
            except HttpError as error:
                log.error("reload: %s", error.message)

        self.reload_task = self.loop.create_task(reload())


def reserved_port(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen: the port is ours until it is closed, and workers may bind it too.

    Raises OSError where the port is taken, also by another server that would share it.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(family) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
    shared = socket.socket(family)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind(address)
    return shared
