"""python -m project_nlp_intent.data import --format clinc150 data_full.json --out data/nlp

Turns files of others into train.jsonl, val.jsonl and test.jsonl of --out: CLINC150's JSON (its out-of-scope texts stay
so, under the label "oos"), and .tsv or .csv files of label and text. In Python:

    train, val = load_splits("data/nlp/train.jsonl", None, val_fraction=0.1, seed=42)
    train.encode(encoder := Encoder.fit(train.texts))
    for inputs, labels in make_loader(train, bs=256, shuffle=True):     # see Encoded.batch; (B,) int64
        logits = model(inputs)
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common.cli import UserError, command_parser, run
from project_nlp_intent.convert import add_import_flags, import_files
from project_nlp_intent.encode import Encoded, Encoder, build_vocab, encode, tokenize
from project_nlp_intent.read import DEMO, SUFFIXES, read_labelled
from project_nlp_intent.text import clean

__all__ = ["IntentDataset", "build_vocab", "encode", "load_splits", "make_loader", "split", "tokenize"]
NEW, OUT = -1, -2  # label of a text of a class that train has not, and of one that is out of scope
OOS = "oos"  # what files call the latter, unless --oos_label says otherwise
VAL_NAMES = ("val", "valid", "validation", "dev")
SHOWN = 8


class IntentDataset(Dataset):
    """The texts of a .jsonl, .csv or .tsv file, cleaned, with labels.

    classes: names in label order; by default those of the file, sorted (integers as numbers). A text of another class
    keeps its place with label NEW; one whose label is `oos_label` is out of scope, label OUT, and that is no class.
    Raises UserError for a file without a text that can be used, and with `strict` for the first line that cannot.
    """

    def __init__(self, path: str | Path, classes: list[str] | None = None, oos_label: str = OOS, strict: bool = False):
        self.path = Path(path)
        self.rows, self.bad = read_labelled(self.path)
        if strict and self.bad:
            first = self.bad[0]
            raise UserError(f"{path}: line {first['line']}: {first['reason']}; mend it or leave --strict out")
        self.texts = [clean(row.text) for row in self.rows]
        found = {row.label for row in self.rows} - {oos_label}
        self.classes = classes or sorted(found, key=_in_order)
        number = {name: i for i, name in enumerate(self.classes)} | {oos_label: OUT}
        self.labels = torch.tensor([number.get(row.label, NEW) for row in self.rows])
        self.encoded: Encoded | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def encode(self, encoder: Encoder) -> None:
        """Prepare the inputs of all texts, once."""
        self.encoded = encoder.encode(self.texts)

    def __getitem__(self, rows: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs of the texts with these numbers, as `Encoded.batch` gives them, and labels (B,)."""
        return self.encoded.batch(rows), self.labels[list(rows)]

    @property
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each text."""
        return np.diff(self.encoded.token_starts)

    @property
    def new_classes(self) -> dict[str, int]:
        """Classes of the texts with label NEW, and how many there are."""
        return dict(
            Counter(row.label for row, label in zip(self.rows, self.labels.tolist(), strict=True) if label == NEW)
        )

    def take(self, indices: Sequence[int]) -> IntentDataset:
        """The same file with only these texts."""
        part = copy.copy(self)
        part.rows, part.texts = [self.rows[i] for i in indices], [self.texts[i] for i in indices]
        part.labels, part.encoded = self.labels[list(indices)], None
        return part


def _in_order(name: str) -> tuple[bool, int, str]:
    """Integers before names, as numbers."""
    number = name.removeprefix("-").isdecimal()
    return not number, int(name) if number else 0, name


def load_splits(
    train_path: str, val_path: str | None, val_fraction: float, seed: int, **options: object
) -> tuple[IntentDataset, IntentDataset]:
    """Train and validation sets; `options` go to IntentDataset.

    val_path: None takes val, valid, validation or dev beside `train_path`; where there is none, `val_fraction` of every
    class is held out. Out-of-scope texts of the train file are left out: they belong to no class.
    Raises UserError for a train file of one class, or a validation file without any class of it.
    """
    train = IntentDataset(train_path, **options)
    if len(train.classes) < 2:
        raise UserError(f"{train_path}: classes {train.classes}; wanted at least two. {DEMO}")
    beside = [Path(train_path).with_name(name + suffix) for name in VAL_NAMES for suffix in SUFFIXES]
    found = val_path or next((path for path in beside if path.is_file() and path != Path(train_path)), None)
    if found is None:
        train, val = split(train, val_fraction, seed)
    else:
        val = IntentDataset(found, **{**options, "classes": train.classes})
    if not (val.labels >= 0).any():
        raise UserError(f"{val.path}: classes {list(val.new_classes)[:SHOWN]}, wanted some of {train.classes[:SHOWN]}")
    return train.take(torch.nonzero(train.labels >= 0).flatten().tolist()), val


def split(texts: IntentDataset, fraction: float, seed: int) -> tuple[IntentDataset, IntentDataset]:
    """Hold out `fraction` of every class, and of what is out of scope, seeded; equal texts stay on one side.

    Every class keeps at least one text for training. What could not be read is told with the training part.
    Raises UserError where nothing is left to hold out.
    """
    rng = np.random.default_rng(seed)
    groups = defaultdict(list)
    for index, text in enumerate(texts.texts):
        groups[text].append(index)
    sizes = Counter(texts.labels.tolist())
    wanted = {label: min(round(fraction * n), n - 1) for label, n in sizes.items()}
    held: list[int] = []
    for members in (list(groups.values())[i] for i in rng.permutation(len(groups))):
        counts = Counter(texts.labels[members].tolist())
        if all(n <= wanted[label] for label, n in counts.items()):
            held += members
            for label, n in counts.items():
                wanted[label] -= n
    if not held:
        raise UserError(f"{texts.path}: too few texts to hold out {fraction:.0%}; add texts or pass --val_jsonl")
    val = texts.take(sorted(held))
    val.bad = []
    return texts.take(np.setdiff1d(np.arange(len(texts)), held).tolist()), val


class Buckets(Sampler):
    """Batches of texts of like length, so that little is padding; which ones meet, and their order, is drawn anew."""

    def __init__(self, lengths: np.ndarray, bs: int, shuffle: bool, drop_last: bool):
        self.lengths, self.bs, self.shuffle, self.drop_last = lengths, bs, shuffle, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.bs)
        return whole + bool(rest and not (self.drop_last and whole))

    def __iter__(self) -> Iterator[list[int]]:
        n = len(self.lengths)
        order = torch.randperm(n).numpy() if self.shuffle else np.arange(n)
        order = order[: len(self) * self.bs]
        pool = 20 * self.bs  # sorted within pools, not over all: the batches of two epochs differ
        for start in range(0, n if self.shuffle else 0, pool):
            part = order[start : start + pool]
            order[start : start + pool] = part[np.argsort(self.lengths[part], kind="stable")]
        batches = [order[i : i + self.bs].tolist() for i in range(0, len(order), self.bs)]
        for i in torch.randperm(len(batches)).tolist() if self.shuffle else range(len(batches)):
            yield batches[i]


def make_loader(dataset: IntentDataset, bs: int, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
    """Batches of inputs (see `Encoded.batch`) and labels (B,) int64, of an encoded dataset.

    The order comes from torch's global generator. Without `shuffle` it is that of the file.
    """
    return DataLoader(dataset, batch_size=None, sampler=Buckets(dataset.lengths, bs, shuffle, drop_last))


def balanced_weights(texts: IntentDataset) -> Tensor:
    """(C,) weights in inverse proportion to the class counts; their mean over the texts is 1."""
    counts = torch.bincount(texts.labels, minlength=len(texts.classes)).clamp(min=1)
    return len(texts) / (len(texts.classes) * counts.float())


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    add_import_flags(actions.add_parser("import", help="files of others → train.jsonl, val.jsonl, test.jsonl"))
    import_files(parser.parse_args(argv))


if __name__ == "__main__":
    run(main)
