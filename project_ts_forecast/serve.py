r"""python -m project_ts_forecast.serve --ckpt runs/ts/best.pt --port 8082

    curl -s localhost:8082/forecast -d '{"values": [21.5, 21.9, 22.4, 22.1]}'
    curl -s localhost:8082/observe -d '{"series_id": "pump", "time": "2024-05-01 12:00", "value": 22.3}'

Answers POST /forecast with pred, lower, upper and quantiles, a number for each step, and POST /observe, row by row,
with an anomaly score, a flag and the next forecast; GET /health, /live and /ready. One JSON line a request goes to
--request_log where it is given. What /observe has seen is written to --sessions_file every minute (--sessions_every)
and at SIGTERM, and read from it at the start. It is one process's, so several --workers go with --sessions 0 only.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from common.cli import UserError, command_parser, number, run
from common.server_microbatch import Route, add_server_flags, run_server
from project_ts_forecast.decode import NUMBERS, PAST
from project_ts_forecast.inference import Predictor
from project_ts_forecast.sessions import ROW, Sessions
from project_ts_forecast.streams import Streams


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--ckpt", default="runs/ts/best.pt", help="checkpoint to serve")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add("--sessions", type=number(int, 0), default=1000, help="most series that /observe remembers; 0: no /observe")
    add("--sessions_file", help="where they are kept over a restart (default: sessions.json beside --ckpt)")
    add("--sessions_every", type=number(float, 0), default=60, help="seconds between writing it; 0: at SIGTERM only")
    add_server_flags(parser, port=8082, decode_threads=0, policy=Path(__file__).with_name("monitoring.json"))
    args = parser.parse_args(argv)
    if args.sessions and args.workers > 1:
        raise UserError("--workers: a series must meet the process that knows it; pass --sessions 0, or one worker")
    if args.sessions and args.model_process:
        raise UserError("--model_process: a model apart does not know what /observe has seen; pass --sessions 0")
    sys.exit(serve(args))


def serve(args: argparse.Namespace) -> int:
    """Until SIGTERM; the exit status."""
    sessions = Sessions(args.sessions)
    file = Path(args.sessions_file or Path(args.ckpt).with_name("sessions.json"))
    beside = (Route("/observe", "value", schema=ROW["properties"]["value"], whole=ROW),) if args.sessions else ()
    route = Route("/forecast", "values", name="ts", form="series", schema=NUMBERS, whole=PAST, beside=beside)
    with sessions.kept(file, args.sessions_every) if args.sessions else nullcontext():
        return run_server(lambda: Streams(Predictor.load(args.ckpt, args.device), sessions), route, args)


if __name__ == "__main__":
    run(main)
