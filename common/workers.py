"""The line between a supervisor and its workers: both sides ask each other, one JSON object a line.

    link = WorkerLink(worker_settings(), args)      # in a worker; the settings are None where nobody supervises
    await link.open(answer, gone)
    snapshots = await link.ask("metrics", own)

It runs over one socket pair a worker. A worker whose supervisor is gone finishes what it has accepted, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable

from common.http_wire import HttpError

SETTINGS = "ML_E2E_WORKER"  # environment variable: what the supervisor tells a worker, as JSON
LINE_BYTES = 1 << 24  # the longest message: the metrics of all workers


def worker_settings() -> dict | None:
    """{"fd", "port", "ckpt"} in a worker, None in a process that nobody supervises."""
    return told_by(SETTINGS)


def told_by(variable: str) -> dict | None:
    """What the process that started this one says in an environment variable, as JSON; None where it says nothing."""
    text = os.environ.get(variable)
    return json.loads(text) if text else None


class Peer:
    """One end of the line: asks, and is asked. `answer(what, value)` gives the value or raises HttpError."""

    def __init__(self, answer: Callable[[str, object], Awaitable[object]], gone: Callable[[], None]):
        self.answer, self.gone, self.writer = answer, gone, None
        self.waiting: dict[int, asyncio.Future] = {}
        self.asked = 0
        self.tasks: set[asyncio.Task] = set()

    async def open(self, end: socket.socket) -> None:
        self.reader, self.writer = await asyncio.open_connection(sock=end, limit=LINE_BYTES)
        self._keep(self._read())

    def tell(self, what: str, value: object = None) -> None:
        """Say something that wants no answer."""
        self._send({"ask": what, "value": value})

    async def ask(self, what: str, value: object = None) -> object:
        """The other side's answer. Raises HttpError, its own or 503 when it is gone."""
        self.asked += 1
        number = self.asked
        try:
            self._send({"ask": what, "value": value, "number": number})
            future = self.waiting[number] = asyncio.get_running_loop().create_future()
            return await future
        finally:
            self.waiting.pop(number, None)

    def _send(self, message: dict) -> None:
        if self.writer is None or self.writer.is_closing():
            raise HttpError(503, "the other process is gone")
        self.writer.write(json.dumps(message).encode() + b"\n")

    def _keep(self, work: Awaitable) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):  # the same as the end of the line: the other side is gone
            while line := await self.reader.readline():
                message = json.loads(line)
                if "ask" in message:
                    self._keep(self._reply(message))
                elif future := self.waiting.get(message["number"]):
                    error = message.get("error")
                    if error:
                        future.set_exception(HttpError(*error))
                    else:
                        future.set_result(message["value"])
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(HttpError(503, "the other process is gone"))
        self.writer.close()
        self.gone()

    async def _reply(self, message: dict) -> None:
        try:
            reply = {"value": await self.answer(message["ask"], message["value"])}
        except HttpError as error:
            reply = {"error": [error.status, error.message]}
        if "number" in message:
            self._send({"number": message["number"], **reply})


class WorkerLink:
    """A worker's end: to the supervisor go `listening`, `ready`, `metrics` and `reload`."""

    def __init__(self, settings: dict, args: argparse.Namespace):
        self.end = socket.socket(fileno=settings["fd"])
        args.port = settings["port"]
        if settings["ckpt"]:
            args.ckpt, args.model = settings["ckpt"], ""

    async def open(self, answer: Callable[[str, object], Awaitable[object]], gone: Callable[[], None]) -> None:
        self.peer = Peer(answer, gone)
        self.ask, self.tell = self.peer.ask, self.peer.tell
        await self.peer.open(self.end)
