"""python -m tests.bench.intent_app --port 8081 --max_batch 64

A server the size of a small intent model: a TextCNN over 32 words with random weights, which stands in for a trained
one where only speed and manners are measured. Reads nothing; POST /predict {"text": "..."} as every server here.
"""

from __future__ import annotations

import random
import re
import sys
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from common.cli import command_parser, run
from common.server_microbatch import Route, add_server_flags, run_server

WORDS, MAX_LEN, CLASSES = 30_000, 32, 150
WORD = re.compile(r"\w+|[^\w\s]")
POISON = "poison"  # a text of this one word passes decode and makes the model fail
VERBS = "book cancel change find play stop show tell send pay move check order open close read translate track"
THINGS = (
    "table flight room song alarm meeting bill card balance weather route parcel pizza taxi train ticket message photo "
    "recipe timer account loan insurance doctor movie playlist password reminder refund invoice"
)
DETAILS = (
    "for two people|tomorrow at seven|near the station|in Berlin|with my savings|before noon|please, as soon as you can"
    "|for the whole family and the dog|under the name of Miller|again|without delay, I am late|that I asked for"
)


class TextCNN(nn.Module):
    """(B, 32) int64 word ids, 0 pads → (B, 150) logits."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 128, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(128, 128, size) for size in (2, 3, 4))
        self.head = nn.Linear(3 * 128, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).transpose(1, 2)  # (B, 128, 32)
        return self.head(torch.cat([conv(x).relu().amax(2) for conv in self.convolutions], dim=1))


class Intents:
    """What a server asks of a model."""

    model_id, example = "intent-bench", "book a table for two people tomorrow at seven"

    def __init__(self):
        torch.manual_seed(0)
        self.model = TextCNN().eval()
        self.labels = [f"intent_{number}" for number in range(CLASSES)]
        self.poison = self.decode(POISON)
        self.golden = [self.decode(text) for text in make_texts(8)]
        self.golden_answers = self.predict_rows(self.golden)

    def decode(self, text: object) -> bytes:
        """A text → the ids of its first 32 words, as the bytes of 32 int64. Raises ValueError in words."""
        if not isinstance(text, str):
            raise ValueError(f"text is a {type(text).__name__}, wanted a string")
        words = WORD.findall(text.lower())[:MAX_LEN]
        if not words:
            raise ValueError("text holds no word")
        ids = [crc32(word.encode()) % (WORDS - 1) + 1 for word in words]
        return np.array(ids + [0] * (MAX_LEN - len(ids))).tobytes()

    @torch.inference_mode()
    def predict_rows(self, rows: list[bytes]) -> list[dict]:
        """Decoded texts, in one forward pass → one answer each: pred, label and conf."""
        if self.poison in rows:
            raise RuntimeError("the poisoned text is in this batch")
        ids = torch.from_numpy(np.frombuffer(b"".join(rows), np.int64).reshape(-1, MAX_LEN).copy())
        conf, pred = self.model(ids).softmax(1).max(1)
        return [
            {"pred": p, "label": self.labels[p], "conf": c} for p, c in zip(pred.tolist(), conf.tolist(), strict=True)
        ]

    def check_golden(self) -> None:
        """Raises ValueError where the answers to a few texts are not those of the start."""
        answers = self.predict_rows(self.golden)
        for number, (found, wanted) in enumerate(zip(answers, self.golden_answers, strict=True)):
            if found["pred"] != wanted["pred"] or abs(found["conf"] - wanted["conf"]) > 1e-3:
                raise ValueError(f"golden answer {number}: found {found}, wanted {wanted}")


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of 3 to some 25 words, the same for the same seed."""
    rng = random.Random(seed)
    verbs, things, details = VERBS.split(), THINGS.split(), DETAILS.split("|")

    def wish() -> str:
        return f"{rng.choice(verbs)} the {rng.choice(things)} {rng.choice(details)}"

    return [" and ".join(wish() for _ in range(rng.randint(1, 3))) for _ in range(count)]


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add_server_flags(parser, port=8081, decode_threads=0)
    sys.exit(run_server(Intents, Route("/predict", key="text", list_key="texts"), parser.parse_args(argv)))


if __name__ == "__main__":
    run(main)
