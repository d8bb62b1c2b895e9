"""The flags of every server: `add_server_flags(parser, port=8080)`."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.cli import number
from common.http_wire import Limits
from common.model_slot import cores
from common.releases import STORE
from common.rollout import Plan
from common.rollout_control import guardrail_list, stage_list

WHOLE, SOME = number(int, 1), number(float, 0)
FLAGS = [  # name, kind, default, help
    (
        "model",
        str,
        "",
        "release to serve in place of --ckpt, such as vision@production; looked up anew at a reload",
    ),
    ("registry", str, STORE, "folder of the registry that --model is looked up in"),
    ("host", str, "127.0.0.1", "address to listen on; 0.0.0.0 for all"),
    ("port", number(int, 0, 65535), 8080, "port to listen on; 0 picks a free one"),
    ("workers", number(int, 1, 256), 1, "processes that share the port; each has its own model"),
    ("max_batch", WHOLE, 32, "most rows in one forward pass"),
    ("window_ms", SOME, 5.0, "longest wait of a busy model for rows in decode, in ms; an idle one never waits"),
    ("queue", WHOLE, 256, "most rows accepted and not yet through the model; beyond it the answer is 429"),
    ("timeout_ms", WHOLE, 5000, "time for one answer, queue included, in ms; the header X-Timeout-Ms shortens it"),
    ("drain_s", SOME, 20.0, "longest time to finish accepted requests on SIGTERM, in seconds"),
    ("decode_threads", number(int, 0), 1, "threads that decode requests; 0: the model's own"),
    ("threads", number(int, 0), 0, "torch threads of a worker; 0: $OMP_NUM_THREADS or half of the cores"),
    ("max_body_mb", SOME, 10.0, "largest request body, in MB"),
    ("max_head_kb", WHOLE, 16, "largest request head, in KiB"),
    ("max_headers", WHOLE, 64, "most headers of a request"),
    ("max_connections", WHOLE, 4096, "most open connections; beyond it the answer is 503"),
    ("head_s", SOME, 10.0, "time for a client to send the head of a request, in seconds"),
    ("body_s", SOME, 30.0, "time for a client to send a body or to take an answer, in seconds"),
    ("idle_s", SOME, 75.0, "time an unused connection is kept open, in seconds"),
    ("alert_p95_ms", SOME, 0.0, "raise the alarm lat_p95 at this latency in ms; 0 is off"),
    ("policy", str, "", "JSON file that says what is watched and when it is an alarm, or off"),
    ("webhook", str, "", "URL that alarms are posted to, as Alertmanager's API v2 wants them; empty is off"),
    ("alert_command", str, "", "program that gets alarms on its standard input, one JSON line each; empty is off"),
    ("request_log", str, "", "JSONL file that gets one line per prediction; empty is off"),
    (
        "request_log_mb",
        SOME,
        100.0,
        "size at which it becomes FILE.1 (and .1 becomes .2, up to .5), in MB; 0 never",
    ),
    ("admin_token_file", str, "", "file with the bearer token of /admin/*, else $ML_E2E_ADMIN_TOKEN; none: off"),
    ("api_token_file", str, "", "file with the bearer token of predictions, else $ML_E2E_API_TOKEN; none: open"),
    ("canary", str, "", "candidate that gets a part of the requests: a checkpoint, or a release such as vision@3"),
    ("stages", stage_list, "1,5,25,100", "percents of the requests that the candidate gets, one after the other"),
    ("stage_requests", WHOLE, Plan.stage_requests, "requests of the candidate before it may leave a stage"),
    ("guardrails", guardrail_list, ",".join(Plan.guardrails), "what rolls the candidate back"),
    ("max_disagreement", number(float, 0.001, 0.999), 0.2, "part of the answers in which the models may differ"),
    ("canary_patience_ms", WHOLE, 1000, "time for the candidate's answer, in ms; after it stable answers"),
    (
        "rollout_state",
        str,
        "",
        "file that keeps the rollout over restarts; empty: rollout.json beside --ckpt, or rollout-PROJECT.json in"
        " --registry with --model",
    ),
]
APART = "the model in a process of its own: faster where a core is free, and loaded twice (default: off)"
SHADOW = "the candidate sees a copy of what it keeps up with, and answers none (default: off)"


def add_server_flags(
    parser: argparse.ArgumentParser, port: int, decode_threads: int | None = None, policy: Path | None = None
) -> None:
    """Add them; `port`, `decode_threads` (None: one a core, 8 at most) and `policy` are defaults.

    Limits are per worker.
    """
    parser.add_argument("--shadow", action="store_true", help=SHADOW)
    parser.add_argument("--model_process", action="store_true", help=APART)
    threads = min(8, cores()) if decode_threads is None else decode_threads
    defaults = {"port": port, "decode_threads": threads, "policy": str(policy or "")}
    for name, kind, default, text in FLAGS:
        default = defaults.get(name, default)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")


def limits(args: argparse.Namespace) -> Limits:
    """What one request may cost, by the flags."""
    return Limits(head_bytes=args.max_head_kb * 1024, headers=args.max_headers, body_bytes=int(args.max_body_mb * 1e6))
