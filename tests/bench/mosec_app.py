"""python -m tests.bench.mosec_app --port 8000 --num 1 --max_batch 64

The bench's model behind mosec, batched as mosec's documentation has it: one stage, `max_batch_size`, and the wait of
10 ms that is its default and stands in its README. $BENCH_CKPT names a checkpoint of the photo model; without it, the
intent model. Flags that are not listed here go to mosec.
"""

from __future__ import annotations

import argparse
import os

from mosec import Server, Worker

from tests.bench.limits import load_predictor

MAX_WAIT_MS = 10


class Predict(Worker):
    """A batch of requests' JSON → their answers."""

    def __init__(self):
        super().__init__()
        self.key, self.predictor = load_predictor(os.environ.get("BENCH_CKPT", ""))
        self.example = [{self.key: self.predictor.example}]

    def forward(self, data: list[dict]) -> list[dict]:
        return self.predictor.predict_rows([self.predictor.decode(item[self.key]) for item in data])


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1, help="processes that hold the model (default: %(default)s)")
    parser.add_argument("--max_batch", type=int, default=64, help="most items in a batch (default: %(default)s)")
    args, _ = parser.parse_known_args()
    server = Server()  # reads --port and --address by itself
    server.append_worker(
        Predict, num=args.num, max_batch_size=args.max_batch, max_wait_time=MAX_WAIT_MS, route="/predict"
    )
    server.run()


if __name__ == "__main__":
    main()
