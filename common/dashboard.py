"""curl -s localhost:8080/dashboard

The page that shows how a server is doing: dashboard.html, which asks /dashboard/data every two seconds; or the same
page with the data of an offline comparison in it.

    reply = dashboard(request, body)
    text = report(data)             # data: as /dashboard/data gives it

Reads dashboard.html. Nothing of it comes from elsewhere.
"""

from __future__ import annotations

from common.endpoints import Reply, to_json
from common.http_wire import Request
from common.page import page_headers, template


def dashboard(request: Request, body: bytes) -> Reply:
    """GET /dashboard."""
    text, policy = template("dashboard.html")
    return Reply(200, text.replace("{{about}}", "null").encode(), "text/html; charset=utf-8", page_headers(policy))


def report(data: dict) -> str:
    """The page with its data inside: one file that can be sent to somebody."""
    about = to_json(data).replace("<", "\\u003c")  # it must not end the script that holds it
    return template("dashboard.html")[0].replace("{{about}}", about)
