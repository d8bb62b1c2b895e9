r"""python -m project_vision_cls.serve --ckpt runs/vision/best.pt --port 8080

    (printf '{"image_base64": "'; base64 < photo.jpg | tr -d '\n'; printf '"}') |
        curl -s localhost:8080/predict -d @-

Answers POST /predict with pred, label, prob and the top five; GET /health, /live and /ready. One JSON line a request
goes to --request_log where it is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from common.cli import command_parser, run
from common.server_microbatch import Route, add_server_flags, run_server
from project_vision_cls.inference import Predictor
from project_vision_cls.photos import Photos

PHOTO = {"type": "string", "description": "base64 of a JPEG, PNG, WebP or BMP file", "contentEncoding": "base64"}


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    parser.add_argument("--ckpt", default="runs/vision/best.pt", help="checkpoint to serve")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add_server_flags(parser, port=8080, policy=Path(__file__).with_name("monitoring.json"))
    args = parser.parse_args(argv)
    route = Route("/predict", key="image_base64", list_key="images_base64", name="vision", form="photo", schema=PHOTO)
    sys.exit(run_server(lambda: Photos(Predictor.load(args.ckpt, args.device)), route, args))


if __name__ == "__main__":
    run(main)
