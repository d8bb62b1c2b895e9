"""What a server offers, path by path, and who may use it.

    endpoints = {"/health": Endpoint(GET, page=lambda request, body: json_reply({"status": "ok"}))}
    tokens = read_tokens(args)                      # of --admin_token_file, --api_token_file or the environment
    error = refusal(endpoint, request, tokens)      # None, or the HttpError that the head alone decides

Everything here is decided before the body is read.
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from common.batcher import Job
from common.cli import UserError
from common.http_wire import HttpError, Request

RETRY = (("Retry-After", "1"),)
GET, POST = ("GET", "HEAD"), ("POST",)
# the two after JSON: what clients send that set no type, as curl -d does
JSON_TYPES = ("", "application/json", "text/plain", "application/x-www-form-urlencoded")
BINARY_TYPES = (*JSON_TYPES, "application/octet-stream")
TOKENS = {"admin": "ML_E2E_ADMIN_TOKEN", "api": "ML_E2E_API_TOKEN"}  # what a token guards: its variable
SHORTEST_TOKEN = 16  # characters; a random one of this length cannot be guessed over a network
to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class Reply(NamedTuple):
    """One answer, ready to be sent."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple = ()  # (name, value) pairs


def json_reply(value: object, status: int = 200, headers: tuple = ()) -> Reply:
    """`value` as JSON."""
    return Reply(status, to_json(value).encode(), headers=headers)


def error_reply(error: HttpError) -> Reply:
    """The one shape of every error: {"error": words}."""
    return _error_reply(error.message, error.status, error.headers)


@lru_cache(maxsize=64)  # a crowd that is turned away gets the same words by the thousand
def _error_reply(message: str, status: int, headers: tuple) -> Reply:
    return json_reply({"error": message}, status, headers)


def later(server, connection, answer: Awaitable, reply: Callable[[object], Reply]) -> Job:
    """The job of a connection whose answer is awaited, and then put into words by `reply`."""
    job = Job()

    async def finish() -> None:
        try:
            done = reply(await answer)
        except HttpError as error:
            done = error_reply(error)
        if not job.abandoned:
            connection.finish(done)

    server.loop.create_task(finish())
    return job


@dataclass(frozen=True, eq=False)
class Endpoint:
    """What is at a path. It is answered by `page` at once, or by `accept`, which returns the job that will finish it.

    guard: whose token it wants, "api" or "admin", or "". predicts: whether it needs a model and a place in the queue.
    name: its path in metrics. media: the content types that are taken.
    """

    methods: tuple[str, ...]
    name: str
    page: Callable[[Request, bytes], Reply] | None = None
    accept: Callable | None = None
    guard: str = ""
    predicts: bool = False
    media: tuple[str, ...] = JSON_TYPES


def read_tokens(args: argparse.Namespace) -> dict[str, bytes]:
    """{"admin": token, "api": token}, as far as they are set: by the flag's file, or by the environment.

    Raises UserError for a file that cannot be read, and for a token that is too short.
    """
    tokens = {}
    for guard, variable in TOKENS.items():
        path, source = getattr(args, f"{guard}_token_file"), f"the environment's {variable}"
        token = os.environ.get(variable, "")
        if path:
            try:
                source, token = path, Path(path).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--{guard}_token_file {path}: cannot be read ({error})") from error
        token = token.strip()
        if path or token:
            if len(token) < SHORTEST_TOKEN or not token.isascii():
                raise UserError(
                    f"{source}: a token of {len(token)} characters, wanted at least {SHORTEST_TOKEN}, ASCII; "
                    "make one with: openssl rand -hex 24"
                )
            tokens[guard] = token.encode()
    return tokens


def refusal(endpoint: Endpoint, request: Request, tokens: dict[str, bytes]) -> HttpError | None:
    """Wrong method, token or type of body: 405, 401, 403 or 415."""
    if request.method not in endpoint.methods:
        return HttpError(405, f"wanted {' or '.join(endpoint.methods)}", (("Allow", ", ".join(endpoint.methods)),))
    if endpoint.guard == "admin" and "admin" not in tokens:
        return HttpError(403, "admin routes are off; start the server with --admin_token_file")
    if endpoint.guard in tokens:
        kind, _, sent = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(sent.strip().encode(), tokens[endpoint.guard])
        if kind.lower() != "bearer" or not right:
            return HttpError(401, "wanted the header Authorization: Bearer TOKEN", (("WWW-Authenticate", "Bearer"),))
    if "POST" in endpoint.methods:
        if request.media not in endpoint.media and not request.media.endswith("+json"):
            return HttpError(415, "wanted Content-Type: application/json")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            return HttpError(415, "wanted a body without Content-Encoding")
    return None
