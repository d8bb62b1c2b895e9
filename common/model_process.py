"""The model in a process of its own (--model_process): beside the event loop it would share Python's lock with it.

    load = load_apart(load, args)           # in the server: as before, but rows are predicted in a process of their own
    serve_model(load, args, settings)       # in that process, which is this command started again

Only rows and answers go over the line between the two, pickled: both ends are ours. The server loads the model too, for
decoding and for what it says of itself. A process that ends is started again by the next batch; it ends by itself when
the server is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from common.batcher import ModelError
from common.cli import UserError
from common.model_slot import model_threads
from common.workers import SETTINGS as WORKER
from common.workers import told_by

log = logging.getLogger(__name__)
SETTINGS = "ML_E2E_MODEL"  # environment variable: what the server tells the model's process, as JSON


def model_settings() -> dict | None:
    """{"fd", "ckpt"} in a model's process, None elsewhere."""
    return told_by(SETTINGS)


def load_apart(load: Callable[[], object], args: argparse.Namespace) -> Callable[[], Apart]:
    """`load` for a server whose rows are predicted elsewhere. Raises UserError with --canary."""
    if args.canary:
        raise UserError("--model_process serves one model; leave it out, or serve the candidate without --canary")

    def load_both() -> Apart:
        process = ModelProcess(getattr(args, "ckpt", ""))  # loads at the same time
        try:
            return Apart(load(), process)
        except BaseException:
            process.close()
            raise

    return load_both


class Apart:
    """A predictor whose rows are predicted in a process of its own; all else is the predictor's."""

    def __init__(self, predictor: object, process: ModelProcess):
        self.predictor, self.process, self.close = predictor, process, process.close
        process.await_model(predictor.model_id)

    def __getattr__(self, name: str) -> object:
        return getattr(self.predictor, name)

    @property
    def helpers(self) -> list[int]:
        """Pids of what belongs to this server beside itself."""
        return [self.process.process.pid]

    def predict_rows(self, rows: list) -> list[dict]:
        return self.process.ask("predict_rows", rows)

    def check_golden(self) -> None:
        self.process.ask("check_golden")


class ModelProcess:
    """Holds the model of one checkpoint, and is asked by any thread, one question at a time."""

    def __init__(self, ckpt: str):
        self.ckpt, self.model_id, self.lock = ckpt, "", threading.Lock()
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, SETTINGS: json.dumps({"fd": theirs.fileno(), "ckpt": self.ckpt})}
        environment.pop(WORKER, None)
        with theirs:
            command = [sys.executable, *sys.orig_argv[1:]]
            # in a session of its own: Ctrl-C is the server's
            self.process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True
            )
        self.line = Connection(ours.detach())
        self._ended = weakref.finalize(self, _end, self.line, self.process)

    def close(self) -> None:
        """End it. It also ends when nobody knows it any more."""
        self._ended()

    def await_model(self, model_id: str) -> None:
        """Until it is loaded. Raises UserError where it is another than `model_id`, and what else is wrong with it."""
        self.model_id = model_id
        try:
            found = self._answer()
            if found != model_id:
                raise UserError(f"{self.ckpt}: now holds model {found}, wanted {model_id}; reload, once it is written")
        except OSError as error:
            raise UserError(f"the model's process ended before it had a model ({error}); see its words above") from None

    def ask(self, method: str, *given: object) -> object:
        """What the model answers. Raises ModelError where it fails, twice where its process ends meanwhile."""
        with self.lock:
            for last in (False, True):
                if self.process.poll() is not None:
                    self._start_again()
                try:
                    _send(self.line, (method, given))
                    return self._answer()
                except OSError as error:
                    self.process.kill()  # whatever it is about, nobody hears of it
                    self.process.wait()
                    if last:
                        raise ModelError(f"the model's process ended ({error!r})") from error

    def _start_again(self) -> None:
        log.error("the model's process ended with %d; it starts again", self.process.returncode)
        self.close()
        self._start()
        try:
            self.await_model(self.model_id)
        except BaseException:
            self.close()
            raise

    def _answer(self) -> object:
        """Raises what the model raised, and OSError where there is no process at the other end."""
        try:
            good, value = pickle.loads(self.line.recv_bytes())
        except EOFError as error:
            raise ConnectionResetError("no answer") from error
        if not good:
            raise value
        return value


def _end(line: Connection, process: subprocess.Popen) -> None:
    line.close()
    process.kill()  # nobody asks it any more
    process.wait()


def serve_model(load: Callable[[], object], args: argparse.Namespace, settings: dict) -> int:
    """Load the model and answer, until the server is gone; the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server's affair, which may have accepted requests
    line = Connection(settings["fd"])
    torch.set_num_threads(model_threads(args))
    if settings["ckpt"]:
        args.ckpt, args.model = settings["ckpt"], ""
    threading.Thread(target=_leave_after, args=(os.getppid(),), daemon=True).start()
    good, model = _tried(load)
    gc.collect()
    gc.freeze()
    with contextlib.suppress(EOFError, ConnectionError):
        _send(line, (good, model.model_id if good else model))
        while good:
            method, given = pickle.loads(line.recv_bytes())
            _send(line, _tried(getattr(model, method), *given))
    return 0 if good else 1


def _send(line: Connection, value: object) -> None:
    # not line.send: torch would have tensors sent as files of shared memory
    line.send_bytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))


def _leave_after(server: int) -> None:
    """A model that is at work, or hangs, would not notice that nobody waits for it."""
    while os.getppid() == server:
        time.sleep(1)
    os._exit(1)


def _tried(function: Callable, *given: object) -> tuple[bool, object]:
    """(True, its value), or (False, an exception that can be sent)."""
    try:
        return True, function(*given)
    except UserError as error:
        return False, UserError(str(error))
    except Exception:
        return False, ModelError(traceback.format_exc().strip())
