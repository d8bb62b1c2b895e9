"""Photos in class folders → batches of uint8 pixels and labels.

    train = ImageFolder("data/vision/train")
    val = ImageFolder("data/vision/val", classes=train.classes, img_size=train.img_size)
    for pixels, labels in make_loader(train, bs=128, shuffle=True):     # (B, S, S, 3) uint8, (B,) int64
        x = normalise(to_tensor(pixels), mean, std)                     # (B, 3, S, S) float32

Reads `root/<class>/**` (jpg, jpeg, png, webp, bmp); writes the cache of `scan.py` and nothing else.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler, WeightedRandomSampler

from common.cli import UserError
from common.seed import seed_worker
from project_vision_cls.decode import to_rgb
from project_vision_cls.scan import duplicate_groups, list_photos, read_photos, usual_side

VAL_NAMES = ("val", "valid", "validation")
DEMO = "Demo photos: python -m project_vision_cls.synthetic --out data/vision"


class ImageFolder(Dataset):
    """Photos of `root/<class>/**`, decoded once to (img_size, img_size, 3) uint8 and read from a memory map.

    classes: names in label order; by default the class folders that hold a readable photo, sorted. A photo of another
    class keeps its place with label -1. img_size: pixels; 0 takes a size that suits the photos.
    Raises UserError for a folder without photos or with another layout, and with `strict` for an unreadable photo.
    """

    def __init__(
        self,
        root: str | Path,
        classes: list[str] | None = None,
        img_size: int = 0,
        cache_dir: str | Path = "runs/cache",
        strict: bool = False,
    ):
        self.root = Path(root)
        files, self.ignored = _checked_files(self.root)
        self.img_size = img_size or sensible_size(usual_side(self.root, files))
        self.images, self.records = read_photos(self.root, files, self.img_size, Path(cache_dir))
        self.skipped = [record for record in self.records if record["error"]]
        if strict and self.skipped:
            shown = "; ".join(f"{record['path']}: {record['error']}" for record in self.skipped[:5])
            raise UserError(f"{root}: {len(self.skipped)} unreadable photos ({shown}); mend them or leave --strict out")
        self.rows = np.array([i for i, record in enumerate(self.records) if not record["error"]], dtype=np.int64)
        if not len(self.rows):
            raise UserError(f"{root}: none of {len(files)} photos can be read ({self.records[0]['error']}). {DEMO}")
        names = [class_of(self.records[row]["path"]) for row in self.rows]
        self.classes = classes or sorted(set(names))
        label = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([label.get(name, -1) for name in names])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor]:
        """Pixels (S, S, 3) and a label, or for a list of indices (B, S, S, 3) and (B,)."""
        return torch.from_numpy(np.take(self.images, self.rows[index], axis=0)), self.labels[index]

    def __getstate__(self) -> dict:
        """For loader workers that are not forked: the memory map goes by its file, not by its content."""
        return {**self.__dict__, "images": self.images.filename}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, images=np.load(state["images"], mmap_mode="r"))

    @property
    def unknown_classes(self) -> dict[str, int]:
        """Classes of items with label -1, and how many there are."""
        return dict(Counter(class_of(self.records[row]["path"]) for row in self.rows[self.labels.numpy() < 0]))

    @property
    def paths(self) -> list[str]:
        """Relative path of each photo, in the order of the items."""
        return [self.records[row]["path"] for row in self.rows]

    def take(self, indices: list[int] | np.ndarray) -> ImageFolder:
        """The same folder with only these items."""
        part = copy.copy(self)
        part.rows, part.labels = self.rows[indices], self.labels[indices]
        return part

    def thumbs(self) -> np.ndarray:
        """(n, 8, 8, 3) uint8: every item, averaged over 8 x 8 cells."""
        edges = np.arange(8) * self.img_size // 8
        area = np.diff([*edges, self.img_size])
        area = (area[:, None] * area)[:, :, None]
        small = np.empty((len(self), 8, 8, 3), np.uint8)
        for start in range(0, len(self), 256):
            pixels = self.images[self.rows[start : start + 256]]
            columns = np.add.reduceat(pixels, edges, axis=2, dtype=np.uint32)
            small[start : start + 256] = np.add.reduceat(columns, edges, axis=1) // area
        return small


def class_of(path: str) -> str:
    """The class of a photo is the first folder of its relative path."""
    return path.split("/", 1)[0]


def sensible_size(side: int) -> int:
    """Pixels to train on, by the photos' usual shorter side: 32 up to 48, 64 up to 96, else 128."""
    return 32 if side <= 48 else 64 if side <= 96 else 128


def _checked_files(root: Path) -> tuple[list[str], dict[str, int]]:
    layout = f"wanted {root}/<class>/*.jpg (or jpeg, png, webp, bmp), one folder a class"
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; {layout}. {DEMO}")
    files, ignored = list_photos(root)
    in_classes = [name for name in files if "/" in name]
    folders = {class_of(name) for name in in_classes}
    if not in_classes:
        found = f"{len(files)} photos outside class folders" if files else f"no photos ({ignored or 'empty'})"
        raise UserError(f"{root}: {found}; {layout}. {DEMO}")
    if folders <= {"train", "test", *VAL_NAMES}:
        raise UserError(f"{root}: holds {', '.join(sorted(folders))}, which are splits; pass {root}/train in its place")
    if len(in_classes) < len(files):
        ignored["photos outside class folders"] = len(files) - len(in_classes)
    return in_classes, ignored


def groups_of(sets: list[ImageFolder]) -> list[int]:
    """For every item of all sets, numbered through, the first item that it is a duplicate or near-duplicate of."""
    records = [photos.records[row] for photos in sets for row in photos.rows]
    return duplicate_groups(records, np.concatenate([photos.thumbs() for photos in sets]))


def load_splits(
    train_root: str, val_root: str | None, val_fraction: float, seed: int, **options: object
) -> tuple[ImageFolder, ImageFolder]:
    """Train and validation sets; `options` go to ImageFolder.

    val_root: None takes val, valid or validation beside `train_root`; where there is none, `val_fraction` of every
    class of `train_root` is held out.
    Raises UserError for a train set of one class or a validation set without any class of the train set.
    """
    train = ImageFolder(train_root, **options)
    if len(train.classes) < 2:
        raise UserError(f"{train_root}: one class ({train.classes[0]}); wanted at least two class folders. {DEMO}")
    beside = [Path(train_root).parent / name for name in VAL_NAMES]
    found = val_root or next((folder for folder in beside if folder.is_dir() and folder != Path(train_root)), None)
    if found is None:
        return split(train, val_fraction, seed)
    val = ImageFolder(found, **{**options, "classes": train.classes, "img_size": train.img_size})
    if (val.labels < 0).all():
        raise UserError(f"{found}: classes {sorted(val.unknown_classes)[:8]}, wanted some of {train.classes[:8]}")
    return train, val


def split(photos: ImageFolder, fraction: float, seed: int) -> tuple[ImageFolder, ImageFolder]:
    """Hold out `fraction` of every class, seeded; duplicates and near-duplicates stay on one side.

    Every class keeps at least one photo for training. What was skipped or passed over is told with the training part.
    Raises UserError where nothing is left to hold out.
    """
    rng = np.random.default_rng(seed)
    groups = defaultdict(list)
    for index, group in enumerate(groups_of([photos])):
        groups[group].append(index)
    sizes = Counter(photos.labels.tolist())
    wanted = {label: min(round(fraction * n), n - 1) for label, n in sizes.items()}
    held: list[int] = []
    for members in (list(groups.values())[i] for i in rng.permutation(len(groups))):
        counts = Counter(photos.labels[members].tolist())
        if all(n <= wanted[label] for label, n in counts.items()):
            held += members
            for label, n in counts.items():
                wanted[label] -= n
    if not held:
        raise UserError(f"{photos.root}: too few photos to hold out {fraction:.0%}; add photos or pass --val_root")
    val = photos.take(sorted(held))
    val.skipped, val.ignored = [], {}
    return photos.take(np.setdiff1d(np.arange(len(photos)), held)), val


def make_loader(
    dataset: ImageFolder,
    bs: int,
    shuffle: bool = False,
    workers: int = 0,
    drop_last: bool = False,
    weights: Tensor | None = None,
) -> DataLoader:
    """Batches of pixels (B, S, S, 3) uint8 and labels (B,) int64; whole batches are gathered at once.

    weights: (n,) chances of being drawn, with replacement, in place of shuffling. The order comes from torch's global
    generator and is the same with any number of workers.
    """
    if weights is not None:
        sampler = WeightedRandomSampler(weights, len(dataset))
    else:
        sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
    batches = BatchSampler(sampler, bs, drop_last=drop_last and len(dataset) >= bs)
    # not pinned: on an H200 the thread that pins costs twice what it saves
    return DataLoader(dataset, batch_size=None, sampler=batches, num_workers=workers, worker_init_fn=seed_worker)


def to_tensor(photo: Image.Image | np.ndarray | Tensor) -> Tensor:
    """Photo or batch (..., H, W, 3) of uint8 → (..., 3, H, W) float32 in [0, 1], in channels-last memory."""
    if isinstance(photo, Image.Image):
        photo = to_rgb(photo)
    pixels = photo if isinstance(photo, Tensor) else torch.from_numpy(np.array(photo))
    return pixels.movedim(-1, -3).float() / 255


def normalise(x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """(B, 3, H, W) in [0, 1] → zero mean and unit variance by channel, with the statistics of the train set."""
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (mean, std))
    return (x - mean).div_(std)


def to_input(
    pixels: Tensor, mean: list[float], std: list[float], gain: Tensor | float = 1.0, shift: Tensor | float = 0.0
) -> Tensor:
    """(B, S, S, 3) uint8 → (B, 3, S, S) float32, channels-last: normalise(to_tensor(pixels)) * gain + shift.

    gain, shift: one number, or (B, 1, 1, 1), one a photo. Rows of 3 S values instead of pixels of 3, and one buffer
    instead of four, make it several times as fast as the operations one by one.
    """
    b, s = len(pixels), pixels.shape[1]
    parts = [[1 / (255 * d) for d in std], [-m / d for m, d in zip(mean, std, strict=True)]]
    scale, offset = torch.tensor(parts, device=pixels.device).repeat(1, s)[:, None]  # (1, 3 S) each
    x = pixels.reshape(b, 1, s, 3 * s).float()
    return torch.addcmul(offset * gain + shift, x, scale * gain, out=x).view(b, s, s, 3).permute(0, 3, 1, 2)


def channel_stats(photos: ImageFolder, sample: int = 5000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of R, G, B in [0, 1] over at most `sample` evenly spaced photos."""
    rows = photos.rows[:: -(-len(photos) // sample)]
    counts = np.zeros((3, 256))  # of each value, so that a few photos are in memory at a time, and sums are exact
    for start in range(0, len(rows), 64):
        values = photos.images[rows[start : start + 64]].reshape(-1, 3)
        counts += [np.bincount(channel, minlength=256) for channel in values.T]
    level = np.arange(256) / 255
    mean = counts @ level / counts.sum(axis=1)
    variance = (counts * (level - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1)
    std = np.sqrt(variance).clip(min=1 / 255)  # a set of flat pictures must not divide by zero
    return mean.tolist(), std.tolist()


def balanced_weights(photos: ImageFolder) -> Tensor:
    """(C,) weights in inverse proportion to the class counts; their mean over the photos is 1."""
    counts = torch.bincount(photos.labels, minlength=len(photos.classes)).clamp(min=1)
    return len(photos) / (len(photos.classes) * counts.float())
