"""curl -s localhost:8080/

The page on which people try the model in a browser: page.html, with what it has to know of the server filled in.

    reply = home(server, request, body)

Reads page.html. Nothing of it comes from elsewhere, and the browser is told to run nothing but its own script.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from common.endpoints import Reply, to_json
from common.http_wire import Request
from common.model_slot import model_version

EXAMPLE_CHARS = 4000  # a longer one fills the screen
LINKS = ("/dashboard", "/openapi.json", "/metrics", "/health")


def home(server, request: Request, body: bytes) -> Reply:
    """GET /."""
    text, policy = template("page.html")
    about = to_json(_about(server)).replace("<", "\\u003c")  # it must not end the script that holds it
    return Reply(200, text.replace("{{about}}", about).encode(), "text/html; charset=utf-8", page_headers(policy))


def page_headers(policy: str) -> tuple:
    """Of a page with such a Content-Security-Policy."""
    return (
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
    )


def _about(server) -> dict:
    model, route = server.slot.predictor, server.route
    example = model.example if model and len(str(model.example)) <= EXAMPLE_CHARS else None
    found = [path for path in (*LINKS, f"/v2/models/{quote(route.name)}") if path in server.endpoints]
    return {
        "name": route.name,
        "model_id": model.model_id if model else "",
        "version": model_version(model) if model else "",
        "why": server.unavailable(),
        "p95": round(server.latencies.quantile(0.95), 3) if len(server.latencies) else None,
        "path": route.path,
        "key": route.key,
        "list_key": route.list_key,
        "form": route.form,
        "example": example if route.form != "photo" else None,
        "body_bytes": server.limits.body_bytes,
        "token": "api" in server.tokens,
        "links": found,
    }


@lru_cache(maxsize=2)
def template(name: str) -> tuple[str, str]:
    """The page in that file, and the Content-Security-Policy under which exactly its own script and style work."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        own = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        hashes[tag] = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
