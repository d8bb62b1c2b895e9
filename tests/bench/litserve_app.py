"""python -m tests.bench.litserve_app --port 8000 --max_batch 64

The bench's model behind LitServe, with its own batching, and its fast queue, which its documentation advises from 100
requests a second. $BENCH_CKPT names a checkpoint of the photo model; without it, the intent model.
"""

from __future__ import annotations

import argparse
import os

import litserve

from tests.bench.limits import load_predictor


class Predict(litserve.LitAPI):
    """A request's JSON → its answer, in batches."""

    def setup(self, device: str) -> None:
        self.key, self.predictor = load_predictor(os.environ.get("BENCH_CKPT", ""))

    def decode_request(self, request: dict) -> object:
        return self.predictor.decode(request[self.key])

    def batch(self, inputs: list) -> list:
        return inputs

    def predict(self, rows: list) -> list[dict]:
        return self.predictor.predict_rows(rows)

    def unbatch(self, output: list[dict]) -> list[dict]:
        return output

    def encode_response(self, output: dict) -> dict:
        return output


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--max_batch", type=int, default=64, help="most items in a batch (default: %(default)s)")
    parser.add_argument("--wait_s", type=float, default=0.01, help="longest wait for a batch (default: %(default)s)")
    parser.add_argument("--queue", choices=("fast", "plain"), default="fast", help="ZeroMQ, or multiprocessing's")
    args = parser.parse_args()
    api = Predict(max_batch_size=args.max_batch, batch_timeout=args.wait_s)
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=args.queue == "fast")
    server.run(host="127.0.0.1", port=args.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
