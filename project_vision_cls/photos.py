"""What the server asks of a model: the Predictor, with photos as base64 text.

    model = Photos(Predictor.load("runs/vision/best.pt"))
    answers = model.predict_rows([model.decode(model.example)])
    numbers = model.features(rows, answers)         # for common/monitor.py

No output.
"""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from project_vision_cls.decode import file_bytes, open_photo, read_pixels
from project_vision_cls.inference import Predictor
from project_vision_cls.watch import photo_features


class Photo(NamedTuple):
    """A decoded row, with what monitoring wants to know of its file."""

    pixels: np.ndarray  # (S, S, 3) uint8
    size: tuple[int, int]  # width and height of the file


class Photos:
    """What the server asks of a model: the Predictor, with photos as base64 text."""

    def __init__(self, predictor: Predictor):
        self.predictor, self.model_id = predictor, predictor.model_id
        self.version, self.data_version = predictor.version, predictor.data_version
        self.check_golden, self.reference = predictor.check_golden, predictor.reference
        self.classes = predictor.classes
        buffer = io.BytesIO()
        Image.fromarray(predictor.example).save(buffer, "PNG")
        self.example = base64.b64encode(buffer.getvalue()).decode()

    def decode(self, item: str | bytes) -> Photo:
        """A photo's file, as bytes or base64; PhotoError in words."""
        with open_photo(file_bytes(item)) as image:
            return Photo(size=image.size, pixels=read_pixels(image, self.predictor.img_size))

    def predict_rows(self, rows: list[Photo]) -> list[dict]:
        return self.predictor.predict_rows([row.pixels for row in rows])

    def embed(self, rows: list[Photo]) -> Tensor:
        return self.predictor.embed([row.pixels for row in rows])

    def features(self, rows: list[Photo], answers: list[dict]) -> dict[str, list]:
        return photo_features(np.stack([row.pixels for row in rows]), [row.size for row in rows], answers)
