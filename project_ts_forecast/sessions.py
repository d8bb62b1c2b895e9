"""Streams of single rows: the latest rows of each series and its anomaly detector, bounded, and kept over a restart.

    sessions = Sessions(most=1000)
    sessions.load("runs/ts/sessions.json")                  # where there is one
    seen = sessions.observe(predictor, {"series_id": "pump", "time": "2024-05-01 12:00", "value": 3.2})
    sessions.save("runs/ts/sessions.json")

`seen.row` is the window that the next forecast is made from, None while it is too short. A stamp that was seen last
changes nothing and gives the same again; rows missing in between are filled as in training, and after a longer gap the
window begins anew. Of more than `most` series, the one that was quiet longest is forgotten.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.amp_ckpt import replace_file
from common.cli import UserError
from project_ts_forecast.anomaly import AnomalyDetector, Reading
from project_ts_forecast.decode import ValuesError
from project_ts_forecast.faults import clock
from project_ts_forecast.repair import fill
from project_ts_forecast.stamps import parse_times, to_utc

FORMAT = 1
ROW = {  # JSON schema of a single row
    "type": "object",
    "additionalProperties": False,
    "required": ["series_id", "time", "value"],
    "properties": {
        "series_id": {"type": "string", "minLength": 1, "maxLength": 200},
        "time": {"type": ["string", "number"], "description": "a stamp, or a row number where the data had no stamps"},
        "value": {"description": "a number, or null; for several columns a list of them, or an object by column"},
    },
}
KEYS = tuple(ROW["properties"])


class Session:
    """One series: values, its latest rows (n, C), NaN where missing; time (µs) of the last of them; the detector."""

    def __init__(self, detector: AnomalyDetector):
        self.values: list[list[float]] = []
        self.time: int | None = None
        self.detector = detector


class Seen(NamedTuple):
    """What an observation led to: the detector's reading, the row to forecast from or None, and what it waits for."""

    series_id: str
    time: str
    reading: Reading
    row: object
    rows_wanted: int


class Streams:
    """What the server asks of a model: the Predictor, which also takes single rows ({"series_id", "time", "value"})."""

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
        windows = [row.row if isinstance(row, Seen) else row for row in rows]
        answers = iter(self.predictor.predict_rows([window for window in windows if window is not None]))
        pairs = zip(rows, windows, strict=True)
        return [_answer(row, {} if window is None else next(answers)) for row, window in pairs]


def _answer(row: object, forecast: dict) -> dict:
    """A forecast, with what the detector read where the row was observed."""
    if not isinstance(row, Seen):
        return forecast
    found = {"series_id": row.series_id, "time": row.time, "score": row.reading.score, "anomaly": row.reading.flag}
    found |= {"channel": row.reading.channel, "cause": row.reading.cause, "rows_wanted": row.rows_wanted}
    return {"pred": None, "lower": None, "upper": None, **forecast, **found}


class Sessions:
    """Series by id, the one observed last at the end; safe to use from several threads."""

    def __init__(self, most: int = 1000):
        self.most, self.lock = most, threading.Lock()
        self.held: OrderedDict[str, Session] = OrderedDict()

    def observe(self, predictor, item: dict) -> Seen:
        """Take one row. Raises ValuesError for one that cannot be used; then nothing is changed."""
        series_id, time, text, values = _read(item, predictor)
        with self.lock:
            session = self.held.get(series_id)
            if session is None or session.detector.channels != predictor.columns[: predictor.outputs]:
                settings = predictor.assets["anomaly"]
                session = Session(AnomalyDetector(predictor.columns[: predictor.outputs], **settings))
            for name, value in predictor.assets["anomaly"].items():  # of the model served now
                setattr(session.detector, name, value)
            reading = self._take(session, time, values, predictor)
            self.held[series_id] = session
            self.held.move_to_end(series_id)
            while len(self.held) > self.most:
                self.held.popitem(last=False)
            row, wanted = self._row(session, series_id, predictor)
        return Seen(series_id, text, reading, row, wanted)

    def _take(self, session: Session, time: int, values: list[float], predictor) -> Reading:
        """Into the window and the detector; the last reading again for the last stamp."""
        passed = None if session.time is None else float(predictor.step.index(np.array([time]), session.time)[0])
        if passed == 0:
            return session.detector.last
        if passed is not None and passed < 0:
            raise ValuesError("the stamp is earlier than the last one of this series; send rows in their order")
        if passed is not None and abs(passed - round(passed)) > 0.25:
            raise ValuesError(f"the stamp is {passed:.2f} steps of {predictor.step} after the last; wanted whole steps")
        seconds = None if predictor.step.kind == "rows" else float(clock(np.array([time]), predictor.assets["tz"])[0])
        reading = session.detector.update(seconds, values[: predictor.outputs])
        missing = 0 if passed is None else round(passed) - 1
        if missing > predictor.assets["max_gap"]:
            session.values = []
        else:
            session.values += [[math.nan] * len(values)] * missing
        session.values = [*session.values, values][-predictor.win - predictor.assets["season"] :]
        session.time = time
        return reading

    def _row(self, session: Session, series_id: str, predictor) -> tuple[object, int]:
        """The row to forecast from, and 0; or None, and how many more rows are wanted."""
        values = np.array(session.values, np.float64)
        fill(values, predictor.assets["fill"], predictor.assets["max_gap"], predictor.assets["season"])
        bad = np.flatnonzero(np.isnan(values).any(1))
        values = values[bad[-1] + 1 if len(bad) else 0 :][-predictor.win :]
        if len(values) < (1 if predictor.assets["pad"] else predictor.win):
            return None, predictor.win - len(values)
        times = None
        if predictor.step.kind != "rows":
            times = predictor.step.at(session.time, np.arange(1 - len(values), 1))
        return predictor.row(values, times, series_id), 0

    def save(self, path: str | Path) -> None:
        """All series to a JSON file, whole or not at all."""
        with self.lock:
            series = {
                series_id: {
                    "time": session.time,
                    "values": [[None if math.isnan(v) else v for v in row] for row in session.values],
                    "detector": session.detector.state_dict(),
                }
                for series_id, session in self.held.items()
            }
        text = json.dumps({"format": FORMAT, "series": series}, allow_nan=False) + "\n"
        replace_file(Path(path), lambda file: file.write(text.encode()))

    def load(self, path: str | Path) -> None:
        """Go on where `save` left off; nothing where there is no file. Raises UserError for another file."""
        if not Path(path).exists():
            return
        try:
            held = json.loads(Path(path).read_text(encoding="utf-8"))
            if held["format"] != FORMAT:
                raise ValueError(f"format {held['format']}, wanted {FORMAT}")
            for series_id, part in held["series"].items():
                session = Session(AnomalyDetector(part["detector"]["channels"]))
                session.detector.load_state_dict(part["detector"])
                session.values = [[math.nan if v is None else float(v) for v in row] for row in part["values"]]
                session.time = part["time"]
                self.held[series_id] = session
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: no sessions that this version wrote ({error}); move the file away") from error


def _read(item: dict, predictor) -> tuple[str, int, str, list[float]]:
    """(series id, time in µs or row number, the stamp as sent, (C,) values with NaN for null)."""
    if set(item) != set(KEYS):
        raise ValuesError(f"found the keys {', '.join(map(str, item))[:100]}; wanted {', '.join(KEYS)}")
    series_id, stamp, value = (item[key] for key in KEYS)
    if not isinstance(series_id, str) or not 0 < len(series_id) <= 200:
        raise ValuesError('"series_id": wanted a string of 1 to 200 characters')
    if type(stamp) not in (str, int, float) or stamp == "":
        raise ValuesError('"time": wanted a stamp, or a row number where the training data had no stamps')
    names = predictor.columns
    values = [value.get(name) for name in names] if isinstance(value, dict) else value
    values = values if isinstance(values, list) else [values]
    plain = all(v is None or (type(v) in (int, float) and math.isfinite(v)) for v in values)
    if len(values) != len(names) or not plain or (isinstance(value, dict) and set(value) - set(names)):
        raise ValuesError(f'"value": wanted a number, or null where it is missing, for each of {", ".join(names)}')
    if predictor.step.kind == "rows":
        if type(stamp) is not int:
            raise ValuesError('"time": this model counts rows; wanted a whole number')
        time = stamp
    else:
        try:
            time = int(parse_times([str(stamp)], predictor.assets["time_format"] or None)[0][0])
        except UserError as error:
            raise ValuesError(f'"time": {error}') from error
        time = int(to_utc(np.array([time]), predictor.assets["tz"])[0]) if predictor.assets["tz"] else time
    return series_id, time, str(stamp), [math.nan if v is None else float(v) for v in values]
