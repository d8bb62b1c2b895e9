"""What the server asks of a model: the Predictor, which also takes single rows.

    streams = Streams(Predictor.load("runs/ts/best.pt"), Sessions())
    (answer,) = streams.predict_rows([streams.decode({"series_id": "pump", "time": "2024-05-01 12:00", "value": 3.2})])

The intervals of a single row's forecast follow the latest errors of its series, those of a whole past the checkpoint's.
Reads and writes nothing.
"""

from __future__ import annotations

import numpy as np
import torch

from project_ts_forecast.sessions import Seen, Sessions


class Streams:
    """A Predictor and the sessions of its series."""

    def __init__(self, predictor, sessions: Sessions):
        self.predictor, self.sessions, self.model_id = predictor, sessions, predictor.model_id
        self.version, self.data_version = predictor.version, predictor.data_version
        self.example, self.check_golden = predictor.example, predictor.check_golden
        self.reference = predictor.reference

    def decode(self, item: object) -> object:
        """A past (`Predictor.decode`), or a single row → Seen. Raises ValuesError."""
        if isinstance(item, dict) and "value" in item:
            return self.sessions.observe(self.predictor, item)
        return self.predictor.decode(item)

    def features(self, rows: list, answers: list[dict]) -> dict[str, list]:
        """For monitoring, of the rows that have a window."""
        windows = [row.row if isinstance(row, Seen) else row for row in rows]
        windows = [window for window in windows if window is not None]
        return self.predictor.features(windows, answers) if windows else {}

    def predict_rows(self, rows: list) -> list[dict]:
        """Rows and Seen, in one forward pass → an answer each; without a forecast while a window is too short."""
        pairs = [(row, row.row if isinstance(row, Seen) else row) for row in rows]
        known = [pair for pair in pairs if pair[1] is not None]

        def rolled(out: np.ndarray, unit: np.ndarray) -> torch.Tensor:
            radius = self.predictor.radius.expand(len(known), *self.predictor.radius.shape).clone()
            with self.sessions.lock:
                for i, (row, _) in enumerate(known):
                    if isinstance(row, Seen):
                        radius[i] = torch.from_numpy(row.session.radius(self.predictor, row, out[i], unit[i]))
            return radius

        answers = iter(self.predictor.predict_rows([window for _, window in known], rolled))
        return [_answer(row, {} if window is None else next(answers)) for row, window in pairs]


def _answer(row: object, forecast: dict) -> dict:
    """A forecast, with what the detector read where the row was observed."""
    if not isinstance(row, Seen):
        return forecast
    found = {"series_id": row.series_id, "time": row.time, "score": row.reading.score, "anomaly": row.reading.flag}
    found |= {"channel": row.reading.channel, "cause": row.reading.cause, "rows_wanted": row.rows_wanted}
    return {"pred": None, "lower": None, "upper": None, **forecast, **found}
