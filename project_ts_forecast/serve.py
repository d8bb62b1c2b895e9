r"""python -m project_ts_forecast.serve --ckpt runs/ts/best.pt --port 8082

    curl -s localhost:8082/forecast -d '{"values": [21.5, 21.9, 22.4, 22.1]}'

Answers POST /forecast with pred, lower, upper and quantiles, a number for each step; GET /health, /live and /ready. One
JSON line a request goes to --request_log where it is given.
"""

from __future__ import annotations

import sys

import torch

from common.cli import command_parser, run
from common.server_microbatch import Route, add_server_flags, run_server
from project_ts_forecast.decode import KEYS
from project_ts_forecast.inference import Predictor

NUMBER = {"type": "number"}
VALUES = {"type": "array", "items": NUMBER, "description": "oldest first, one step apart", "minItems": 1}


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("--ckpt", default="runs/ts/best.pt", help="checkpoint to serve")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add_server_flags(parser, port=8082, decode_threads=0)
    args = parser.parse_args(argv)
    route = Route("/forecast", key="values", name="ts", form="series", schema=VALUES, also=KEYS[1:])
    sys.exit(run_server(lambda: Predictor.load(args.ckpt, args.device), route, args))


if __name__ == "__main__":
    run(main)
