r"""python -m project_nlp_intent.serve --ckpt runs/nlp/best.pt --port 8081

    curl -s localhost:8081/predict -d '{"text": "where is my order?"}'

Answers POST /predict {"text"} or {"texts": [...]} with pred, label, conf, in_scope, truncated and the top classes; GET
/health, /live and /ready. One JSON line a request goes to --request_log where it is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from common.cli import command_parser, number, run
from common.server_microbatch import Route, add_server_flags, run_server
from project_nlp_intent.inference import Predictor


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("--ckpt", default="runs/nlp/best.pt", help="checkpoint to serve")
    parser.add_argument("--top_k", type=number(int, 1), default=5, help="classes named in an answer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add_server_flags(parser, port=8081, decode_threads=0, policy=Path(__file__).with_name("monitoring.json"))
    args = parser.parse_args(argv)

    def load() -> Predictor:
        predictor = Predictor.load(args.ckpt, args.device)
        predictor.top_k = args.top_k
        return predictor

    sys.exit(run_server(load, Route("/predict", key="text", list_key="texts", name="intent"), args))


if __name__ == "__main__":
    run(main)
