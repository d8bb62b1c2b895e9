"""Numbers and texts → the rows of a CSV as bytes, a whole batch at a time.

    parts = [texts(["pump", "fan"]), numbers(np.array([[1.5, 2e9], [-3.0, np.inf]]))]
    joined(parts, (2,))         # b"pump,1.50000000,2.000000e+09\nfan,-3.00000000,inf\n"

Python formats a forecast's numbers one by one and holds its lock meanwhile; here each cell gets a fixed number of
bytes, filled by lookups in whole arrays, and those that stay empty are taken out at the end. No input, no output.
"""

from __future__ import annotations

import functools

import numpy as np

EMPTY = 255  # no byte of UTF-8, and what any digit becomes by a bitwise or with it
WIDTH = 32  # bytes of a number's cell: comma, sign, zeros before the digits; then three times three digits with gaps
FIRST, INFINITE, NAN, END = -310, 310, 311, 312  # powers of ten of the layouts, and two that stand for what is none
TINIEST = 1e-290  # what is smaller is written as 0


@functools.cache
def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits (1000,) and layouts (2 * powers, 4) as words of eight bytes, and the factors that leave nine digits.

    A layout is empty where nothing stands, and 0 where a digit goes; a number is its layout | its digits.
    """
    digits, layouts = np.zeros((1000, 8), np.uint8), np.full((2, END - FIRST, 4, 8), EMPTY, np.uint8)
    for number in range(1000):
        digits[number, [0, 2, 4]] = list(b"%03d" % number)
    for sign, text in enumerate((b",", b",-")):
        for power in range(FIRST, END):
            layout = layouts[sign, power - FIRST]
            head = text + {INFINITE: b"inf", NAN: b"nan"}.get(power, b"")
            if power < INFINITE:
                layout[1:, [0, 2, 4]] = 0
                if -5 <= power < 0:
                    head += b"0." + b"0" * (-power - 1)
                elif 0 <= power < 8:
                    layout[1 + power // 3, 1 + 2 * (power % 3)] = ord(".")
                elif power != 8:  # seven digits and the power
                    layout[1, 1], layout[3, [2, 4]], tail = ord("."), EMPTY, b"e%+03d" % power
                    layout[3, [1, 3, 5, 6, 7][: len(tail)]] = list(tail)
            layout[0, : len(head)] = list(head)
    factors = 10.0 ** np.arange(8 - FIRST, 8 - END, -1).clip(max=300)
    return digits.view(np.uint64)[:, 0], layouts.view(np.uint64).reshape(-1, 4), factors


def numbers(table: np.ndarray) -> np.ndarray:
    """(..., m) float64 → (..., m * WIDTH) uint8: a comma, then nine digits, or seven and a power of ten."""
    digits, layouts, factors = tables()
    values = table.ravel()
    size = np.abs(values)
    known = (size >= TINIEST) & (size < np.inf)
    size = np.where(known, size, 0.0)
    power = np.floor(np.log10(np.where(known, size, 1.0))).astype(np.int64)
    digit = np.where((power < -5) | (power > 8), 100.0, 1.0)  # seven digits beside a power of ten
    whole = np.rint(size * factors[power - FIRST] / digit) * digit
    ten = whole >= 1e9  # rounded up to one digit more
    whole = np.where(ten, 1e8, whole).astype(np.uint32)
    power += ten
    power[np.isinf(values)], power[np.isnan(values)] = INFINITE, NAN
    cells = layouts[power - FIRST + (END - FIRST) * np.signbit(values)]
    thousands, last = np.divmod(whole, np.uint32(1000))
    first, middle = np.divmod(thousands, np.uint32(1000))
    for place, three in enumerate((first, middle, last), 1):
        cells[:, place] |= digits[three]
    return cells.view(np.uint8).reshape(*table.shape[:-1], -1)


def texts(cells: list[str]) -> np.ndarray:
    """(n, width) uint8; a NUL counts as empty."""
    held = np.array([cell.encode() for cell in cells])
    return held.view(np.uint8).reshape(len(cells), -1)


def quoted(text: str) -> str:
    """A cell as CSV writes it."""
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n\r') else text


def joined(parts: list[np.ndarray], shape: tuple[int, ...]) -> bytes:
    """Rows of the given shape, from parts (..., width) that are spread over it, each ended by a line feed."""
    block = np.empty((*shape, sum(part.shape[-1] for part in parts) + 1), np.uint8)
    at = 0
    for part in parts:
        block[..., at : at + part.shape[-1]] = part
        at += part.shape[-1]
    block[..., -1] = ord("\n")
    return block.tobytes().translate(None, b"\0\xff")
