"""What is watched of texts: numbers that say what they are like, beside what the model made of them.

    features = text_features(predictor.encoder.encode(texts), answers)      # {"length": [...], ...}, one value a text

No input, no output.
"""

from __future__ import annotations

import numpy as np

from project_nlp_intent.encode import Encoded


def text_features(encoded: Encoded, answers: list[dict]) -> dict[str, list]:
    """Encoded texts and their answers → five features.

    label, conf: of the answer. length: tokens. unknown: share of words that training has not seen. in_scope: "yes" or
    "no", whether the answer was accepted.
    """
    return {
        "label": [answer["label"] for answer in answers],
        "conf": [answer["conf"] for answer in answers],
        "length": np.diff(encoded.token_starts).astype(float).tolist(),
        "unknown": encoded.unknown.astype(float).tolist(),
        "in_scope": ["yes" if answer["in_scope"] else "no" for answer in answers],
    }
