"""python -m project_vision_cls.synthetic --out data/vision --seed 0

Draws a small photo set of toy objects on textured tables, so that the vision project has data from the first minute.
Reads nothing; writes OUT/{train,val,test}/<class>/NNNN.jpg and OUT/made_by_synthetic.json (the settings used).
Colour, texture, background, light, pose, clutter and occlusion are drawn without regard to the class: only shape tells.
"""

import colorsys
import json
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFilter

from common.cli import UserError, command_parser, run

SPLITS = ("train", "val", "test")
NOTE = "made_by_synthetic.json"

# ---- shapes: lists of (points (n, 2) within about [-1, 1], y down; height 0..1), painted in order; height 0 is a hole


def ellipse(x, y, rx, ry, wobble=0.0, n=48):
    """Points (n, 2) of an ellipse at (x, y); wobble: scalar or (n,) relative change of the radius."""
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([x + rx * np.cos(angle) * (1 + wobble), y + ry * np.sin(angle) * (1 + wobble)], axis=1)


def box(x0, y0, x1, y1):
    """Corners (4, 2)."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def mirrored(right_half):
    """Closed outline (2n, 2) from the points (n, 2) of its right half, top to bottom."""
    right_half = np.asarray(right_half)
    return np.concatenate([right_half, right_half[::-1] * (-1, 1)])


def bottle(rng):
    """With a cap and a label."""
    neck, belly, shoulder = rng.uniform(0.1, 0.17), rng.uniform(0.3, 0.42), rng.uniform(-0.4, -0.05)
    bend = np.linspace(0, np.pi, 12)
    curve = np.stack([neck + (belly - neck) * (1 - np.cos(bend)) / 2, shoulder + 0.35 * (bend / np.pi - 1)], axis=1)
    outline = mirrored([(neck, -0.95), *curve, (belly, 0.88), (belly - 0.08, 0.97)])
    label = rng.uniform(shoulder + 0.1, 0.3)
    cap = box(-neck - 0.04, -1, neck + 0.04, rng.uniform(-0.88, -0.78))
    return [(outline, 0.9), (box(-belly, label, belly, label + rng.uniform(0.25, 0.5)), 1.0), (cap, 1.0)]


def gear(rng):
    """Seven to twelve teeth, a hub and a hole."""
    teeth, depth, hub = rng.integers(7, 13), rng.uniform(0.16, 0.28), rng.uniform(0.15, 0.4)
    phase = np.linspace(0, 2 * np.pi * teeth, 240, endpoint=False)
    wobble = -depth / 2 * (1 + np.tanh(rng.uniform(2, 5) * np.sin(phase)))
    pieces = [(ellipse(0, 0, 0.9, 0.9, wobble, 240), 0.9), (ellipse(0, 0, hub + 0.13, hub + 0.13), 1.0)]
    return [*pieces, (ellipse(0, 0, hub, hub), 0.0)]


def key(rng):
    """A bow with a hole, a shaft, two to four teeth."""
    bow, tip = rng.uniform(0.28, 0.4), rng.uniform(0.85, 1.0)
    pieces = [(ellipse(-0.6, 0, bow, bow * rng.uniform(0.8, 1.25)), 1.0), (box(-0.5, -0.085, tip, 0.085), 1.0)]
    for x in tip - 0.05 - 0.17 * np.arange(rng.integers(2, 5)):
        pieces.append((box(x - 0.1, 0, x, rng.uniform(0.2, 0.36)), 0.9))
    hole = bow * rng.uniform(0.35, 0.7)
    return [*pieces, (ellipse(-0.6 - rng.uniform(0, bow - hole - 0.06), 0, hole, hole), 0.0)]


def leaf(rng):
    """Smooth or toothed, with a midrib, side veins and a stem."""
    along, width, lean = np.linspace(0, 1, 40), rng.uniform(0.32, 0.55), rng.uniform(0.7, 1.5)
    teeth = 1 + rng.uniform(0, 0.12) * np.sin(along * np.pi * 2 * rng.integers(5, 11))
    half = width * np.sin(np.pi * along**lean) ** rng.uniform(0.8, 1.3) * teeth
    pieces = [(mirrored(np.stack([half, 1.6 * along - 1], axis=1)), 0.9), (box(-0.035, -0.8, 0.035, 1), 1.0)]
    for y in np.linspace(-0.6, 0.3, rng.integers(4, 7)):
        reach = 0.85 * np.interp((y + 0.8) / 1.6, along, half)
        vein = [(0, y + 0.2), (reach, y - 0.03), (reach, y + 0.01), (0, y + 0.25)]
        pieces += [(np.array(vein) * (side, 1), 0.6) for side in (-1, 1)]
    return pieces


def mug(rng):
    """With a handle, seen from a little above."""
    top, bottom, rim = rng.uniform(0.5, 0.62), rng.uniform(0.4, 0.6), rng.uniform(0.12, 0.22)
    tall, wide, y = rng.uniform(0.62, 0.85), rng.uniform(0.26, 0.36), rng.uniform(-0.1, 0.1)
    handle = [(ellipse(top - 0.05, y, wide, 0.42), 0.9), (ellipse(top - 0.05, y, wide - 0.13, 0.28), 0.0)]
    body = [(mirrored([(top, -tall), (bottom, tall)]), 0.9), (ellipse(0, tall, bottom, rim * 0.8), 0.9)]
    opening = [(ellipse(0, -tall, top, rim), 1.0), (ellipse(0, -tall, top - 0.07, rim - 0.05), 0.35)]
    return [(points - (0.15, 0), height) for points, height in handle + body + opening]


def wrench(rng):
    """An open jaw at one end, a ring at the other."""
    jaw, ring, thick = rng.uniform(0.3, 0.4), rng.uniform(0.22, 0.32), rng.uniform(0.09, 0.14)
    gap = jaw * rng.uniform(0.4, 0.55)
    handle = [(box(-0.65, -thick, 0.65, thick), 0.9), (box(-0.35, -thick / 2, 0.35, thick / 2), 0.7)]
    heads = [(ellipse(-0.65, 0, jaw, jaw), 1.0), (ellipse(0.72, 0, ring, ring), 1.0)]
    return [*handle, *heads, (box(-1.1, -gap, -0.65, gap), 0.0), (ellipse(0.72, 0, ring * 0.6, ring * 0.6), 0.0)]


SHAPES = {"bottle": bottle, "gear": gear, "key": key, "leaf": leaf, "mug": mug, "wrench": wrench}


def clutter(rng):
    """A washer, stick, pebble or card: parts that the classes also have, so that no part alone gives a class away."""
    a, b = rng.uniform(0.4, 1), rng.uniform(0.12, 0.3)
    pebble = ellipse(0, 0, a, 0.7, 0.25 * rng.uniform(-1, 1, 12), 12)
    washer = [(ellipse(0, 0, 0.8, 0.8), 1.0), (ellipse(0, 0, 0.8 - 2 * b, 0.8 - 2 * b), 0.0)]
    return [washer, [(box(-1.3, -b, 1.3, b), 1.0)], [(pebble, 1.0)], [(box(-a, -0.7, a, 0.7), 0.6)]][rng.integers(4)]


# ---- light and matter: float32 arrays (height, width[, 3]) in 0..1, at twice the final resolution


def blur(image, radius):
    """Blurs image (height, width) with two box blurs of 2 * radius + 1 pixels each way, edges repeated."""
    window = 2 * radius + 1
    for _ in range(4):  # every pass blurs down the columns and transposes
        total = np.cumsum(np.pad(image, ((radius + 1, radius), (0, 0)), mode="edge"), axis=0)
        image = (total[window:] - total[:-window]).T / window
    return image


def value_noise(rng, height, width, cell_y, cell_x):
    """Smooth noise (height, width), about 0..1: a random grid of cells (pixels) enlarged with cubic interpolation."""
    grid = rng.random((int(height / cell_y) + 2, int(width / cell_x) + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def pattern(rng, height, width):
    """One of five textures (height, width), about 0..1: clouds, grain, stripes, checks, speckles."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 30)
    clouds = sum(value_noise(rng, height, width, c, c) * c for c in (32, 16, 8, 4)) / 60
    u = x * np.cos(angle) + y * np.sin(angle) + 12 * clouds
    v = y * np.cos(angle) - x * np.sin(angle) + 12 * clouds
    kind = rng.integers(5)
    if kind == 0:
        return clouds
    if kind == 1:
        return 0.7 * value_noise(rng, height, width, 3, 60) + 0.3 * clouds
    if kind == 2:
        return 0.5 + 0.5 * np.tanh(3 * np.sin(2 * np.pi * u / period))
    if kind == 3:
        return 0.5 + 0.5 * np.tanh(6 * np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period))
    return (value_noise(rng, height, width, 3, 3) > 0.75).astype(np.float32)


def matter(rng, height, width, value, busy):
    """Textured surface (height, width, 3) of brightness value (0..1) under white light; busy: 0 is plain, 1 is loud."""
    hue, saturation = rng.random(), rng.beta(1.3, 3)
    first = np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
    second = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.1)) % 1, saturation, value * rng.uniform(0.45, 0.9))
    mix = busy * pattern(rng, height, width)[..., None]
    return first + mix * (np.array(second, np.float32) - first)


def place(canvas, pieces, centre, scale, light, rng):
    """Paints pieces, lit and in a random pose, with their shadow onto canvas (height, width, 3), in place.

    centre, scale: pixels of canvas; light: unit vector towards the light (right, down, up).
    """
    angle, squash = rng.normal(0, 0.2), rng.uniform(0.8, 1)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    pose = np.array([(rng.choice((-1, 1)), rng.normal(0, 0.1)), (0, 1)]) @ turn @ np.diag((1, squash)) * scale
    pieces = [(points @ pose + centre, level) for points, level in pieces]
    corners = np.concatenate([points for points, _ in pieces])
    # only the window that object and shadow can reach is worked on
    left, top = np.clip(corners.min(axis=0) - 24, 0, None).astype(int)
    right, bottom = np.clip(corners.max(axis=0) + 24, 0, None).astype(int)
    canvas = canvas[top:bottom, left:right]
    height, width = canvas.shape[:2]
    if min(height, width) < 2:
        return
    sheet = Image.new("L", (2 * width, 2 * height))
    for points, level in pieces:
        ImageDraw.Draw(sheet).polygon((2 * (points - (left, top))).ravel().tolist(), fill=round(255 * level))
    mask = sheet.point([0] + [255] * 255).reduce(2)
    relief = np.asarray(sheet.reduce(2), np.float32) / 255
    edges = np.asarray(sheet.filter(ImageFilter.BoxBlur(3)).reduce(2), np.float32) / 255
    slope_y, slope_x = np.gradient(3 * edges + rng.uniform(4, 14) * blur(relief, 7))
    facing = (light[2] - slope_x * light[0] - slope_y * light[1]) / np.sqrt(1 + slope_x**2 + slope_y**2)
    facing = np.clip(facing, 0, 1)[..., None]
    value = 0.2 + 0.75 * ((canvas.mean() + rng.uniform(0.3, 0.7)) % 1)  # brighter or darker than what it lies on
    surface = matter(rng, height, width, value, rng.uniform(0, 0.7))
    surface = surface * (0.3 + 0.8 * facing) + rng.uniform(0, 0.5) * facing**24
    away_x, away_y = light[:2] * rng.uniform(4, 14)
    shadow = mask.transform(mask.size, Image.Transform.AFFINE, (1, 0, away_x, 0, 1, away_y))
    shadow = np.asarray(shadow.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4))), np.float32)[..., None] / 255
    canvas *= 1 - rng.uniform(0.3, 0.7) * shadow
    canvas += np.asarray(mask, np.float32)[..., None] / 255 * (surface - canvas)


def photograph(canvas, rng):
    """Uneven light, white balance, focus, pixels and sensor noise: canvas at twice the resolution -> PIL image."""
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in canvas.shape[:2])
    pool = 1 + rng.normal(0, 0.2) * x + (rng.normal(0, 0.2) * y - rng.uniform(0, 0.3) * y**2)[:, None]
    gain = (rng.uniform(0.9, 1.3) * rng.normal(1, 0.08, 3)).astype(np.float32)  # exposure and white balance
    photo = Image.fromarray((255 * np.clip(canvas * pool[..., None] * gain, 0, 1)).astype(np.uint8))
    photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5))).reduce(2)
    noise = rng.normal(0, rng.uniform(1, 9), (*photo.size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8))


def render(class_name: str, rng: np.random.Generator, size: int = 96, vary: float = 0.15) -> Image.Image:
    """One photo of class_name as an RGB PIL image, all chance from the numpy generator rng.

    Each side is size pixels, give or take the fraction vary. Raises ValueError for a class that is not in SHAPES.
    """
    if class_name not in SHAPES:
        raise ValueError(f"no shape is called {class_name!r}: choose one of {', '.join(SHAPES)}")
    width, height = 2 * np.rint(size * rng.uniform(1 - vary, 1 + vary, 2)).astype(int)
    light = np.array([*rng.normal(0, 1, 2), rng.uniform(0.8, 1.8)])
    light = (light / np.linalg.norm(light)).astype(np.float32)
    middle, half = np.array([width, height]) / 2, min(width, height) / 2
    canvas = matter(rng, height, width, rng.uniform(0.3, 0.9), rng.uniform(0, 0.4))

    def scatter(count):
        for _ in range(count):
            angle, reach = rng.uniform(0, 2 * np.pi), half * rng.uniform(0.8, 1.15)
            centre = middle + reach * np.array([np.cos(angle), np.sin(angle)])
            place(canvas, clutter(rng), centre, half * rng.uniform(0.15, 0.35), light, rng)

    scatter(rng.integers(0, 4))
    centre = middle + half * rng.uniform(-0.12, 0.12, 2)
    place(canvas, SHAPES[class_name](rng), centre, half * rng.uniform(0.75, 0.95), light, rng)
    scatter(rng.integers(0, 3))
    return photograph(canvas, rng)


def check_folder(out, settings):
    """Raises FileExistsError unless out is missing, empty, or holds only photos that settings would make again."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    note, advice = out / NOTE, "choose another --out, or --force to overwrite files of the same names"
    if not note.is_file():
        raise FileExistsError(f"{out} is not empty and was not made by this command (no {NOTE} in it): {advice}")
    found = json.loads(note.read_text())
    other = [name for name in ("seed", "size", "vary") if found.get(name) != settings[name]]
    fewer = [split for split in SPLITS if found.get(split, 0) > settings[split]]
    if other or fewer:
        raise FileExistsError(f"{out} holds photos with other {', '.join(other + fewer)} ({note} has them): {advice}")


def make_photos(out: str | Path, seed=0, train=150, val=40, test=40, size=96, vary=0.15, force=False) -> int:
    """Writes train + val + test JPEG files per class under out and returns how many.

    seed: >= 0; size: pixels; vary: see render. Each photo depends on seed, split, class and its number alone, so other
    counts leave it as it is. Nothing is ever deleted: fewer photos over more, with force, leave the rest in place.
    Raises FileExistsError where check_folder does (force skips it), ValueError for settings out of range.
    """
    counts, out = dict(zip(SPLITS, (train, val, test), strict=True)), Path(out)
    settings = {"seed": seed, **counts, "size": size, "vary": vary}
    if seed < 0 or min(counts.values()) < 0 or size < 8 or not 0 <= vary < 0.5:
        raise ValueError(f"wanted seed and counts >= 0, size >= 8 and vary in [0, 0.5), found {settings}")
    if not force:
        check_folder(out, settings)
    out.mkdir(parents=True, exist_ok=True)
    (out / NOTE).write_text(json.dumps({**settings, "pillow": PIL.__version__, "numpy": np.__version__}) + "\n")
    for split_number, (split, count) in enumerate(counts.items()):
        for class_number, class_name in enumerate(SHAPES):
            folder = out / split / class_name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                rng = np.random.default_rng([seed, split_number, class_number, index])
                photo = render(class_name, rng, size, vary)
                photo.save(folder / f"{index:04d}.jpg", quality=int(rng.integers(55, 96)))
    return len(SHAPES) * sum(counts.values())


def main():
    """The command line."""
    parser = command_parser(__doc__)
    parser.epilog = "example: python -m project_vision_cls.synthetic --out /tmp/vision --seed 1 --train 300 --size 64"
    add = parser.add_argument
    add("--out", default="data/vision", help="folder to write")
    add("--seed", type=int, default=0, help="integer from 0 up; same seed, same files (default: %(default)s)")
    for split, count in zip(SPLITS, (150, 40, 40), strict=True):
        add(f"--{split}", type=int, default=count, help=f"photos per class in {split}")
    add("--size", type=int, default=96, help="side of a photo, pixels")
    add("--vary", type=float, default=0.15, help="largest random change of a side, as a fraction of it")
    add("--force", action="store_true", help="write into a folder that holds other files (default: refuse)")
    args = parser.parse_args()
    try:
        made = make_photos(**vars(args))
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    roots = f"--train_root {args.out}/train --val_root {args.out}/val"
    print(f"made {made} photos of {len(SHAPES)} classes; train on them: python -m project_vision_cls.train {roots}")


if __name__ == "__main__":
    run(main)
