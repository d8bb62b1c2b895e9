"""Streams of single rows: the latest rows of each series and its anomaly detector, bounded, and kept over a restart.

    sessions = Sessions(most=1000)
    with sessions.kept("runs/ts/sessions.json", every=60):  # read at the start, written every minute and at the end
        seen = sessions.observe(predictor, {"series_id": "pump", "time": "2024-05-01 12:00", "value": 3.2})

`seen.row` is the window that the next forecast is made from, None while it is too short. A stamp that was seen last
changes nothing and gives the same again; rows missing in between are filled as in training, and after a longer gap the
window begins anew. The intervals of a stream follow its own latest errors. Of more than `most` series, the one that was
quiet longest is forgotten.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from common.amp_ckpt import replace_file
from common.cli import UserError
from project_ts_forecast.anomaly import AnomalyDetector, Reading
from project_ts_forecast.decode import ValuesError
from project_ts_forecast.faults import clock
from project_ts_forecast.repair import fill
from project_ts_forecast.rolled import RolledRadius
from project_ts_forecast.stamps import parse_times, to_utc, uneven

FORMAT = 1
MODELS = 2  # whose intervals a session rolls: the stable one and a candidate
ROW = {  # JSON schema of a single row
    "type": "object",
    "additionalProperties": False,
    "required": ["series_id", "time", "value"],
    "examples": [{"series_id": "meter1", "time": "2024-05-29 08:00", "value": 130.2}],
    "properties": {
        "series_id": {"type": "string", "minLength": 1, "maxLength": 200},
        "time": {"type": ["string", "number"], "description": "a stamp, or a row number where the data had no stamps"},
        "value": {"description": "a number, or null; for several columns a list of them, or an object by column"},
    },
}
KEYS = tuple(ROW["properties"])


class Session:
    """One series: values, its latest rows (n, C), NaN where missing; time (µs) and number of the last of them; the
    detector; the rolled intervals of the models that it was asked of last, by model_id.
    """

    def __init__(self, detector: AnomalyDetector):
        self.values: list[list[float]] = []
        self.time: int | None = None
        self.row = 0
        self.detector = detector
        self.rolled: dict[str, RolledRadius] = {}

    def radius(self, predictor, seen: Seen, out: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """(h, K, pairs), with the model's forecast out (h, K, Q) and what its errors are divided by, unit (K,)."""
        start = predictor.assets["scores"]
        rolled = self.rolled.pop(predictor.model_id, None) or RolledRadius(start, predictor.h, predictor.coverages)
        self.rolled[predictor.model_id] = rolled
        while len(self.rolled) > MODELS:
            del self.rolled[next(iter(self.rolled))]
        pairs = start.shape[-1]
        ends = np.concatenate([out[..., :pairs], out[..., ::-1][..., :pairs]], -1)
        return rolled.take(seen.number, np.array(seen.values[: predictor.outputs]), ends, unit, predictor.coverages)

    def state(self) -> dict:
        """Plain values, for JSON."""
        return {
            "time": self.time,
            "row": self.row,
            "values": [[None if math.isnan(v) else v for v in row] for row in self.values],
            "detector": self.detector.state_dict(),
            "rolled": {model_id: rolled.state() for model_id, rolled in self.rolled.items()},
        }

    @classmethod
    def restored(cls, state: dict) -> Session:
        """The inverse of `state`. Raises KeyError, TypeError, ValueError or AttributeError for what is none."""
        session = cls(AnomalyDetector(state["detector"]["channels"]))
        session.detector.load_state_dict(state["detector"])
        session.values = [[math.nan if v is None else float(v) for v in row] for row in state["values"]]
        session.time, session.row = state["time"], state.get("row", 0)  # an older file has no intervals
        session.rolled = {name: RolledRadius.restored(part) for name, part in state.get("rolled", {}).items()}
        return session


class Seen(NamedTuple):
    """What an observation led to: the detector's reading, the row to forecast from or None, and what it waits for.

    values (C,): those of the row, as the session holds them.
    """

    series_id: str
    time: str
    reading: Reading
    row: object
    rows_wanted: int
    session: Session
    number: int  # of the row, counted from the session's first
    values: list[float]


class Sessions:
    """Series by id, the one observed last at the end; safe to use from several threads."""

    def __init__(self, most: int = 1000):
        self.most, self.lock = most, threading.Lock()
        self.held: OrderedDict[str, Session] = OrderedDict()
        self.unsaved = False

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
            late = session.time is not None and uneven(predictor.step, np.array([session.time, time]))
            reading = self._take(session, time, values, predictor)
            self.held[series_id], self.unsaved = session, True
            self.held.move_to_end(series_id)
            while len(self.held) > self.most:
                self.held.popitem(last=False)
            row, wanted = self._row(session, series_id, predictor)
            row = row._replace(late=late) if row else row
            return Seen(series_id, text, reading, row, wanted, session, session.row, session.values[-1])

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
        session.time, session.row = time, session.row + missing + (passed is not None)
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

    @contextmanager
    def kept(self, path: str | Path, every: float = 0) -> Iterator[None]:
        """Go on where the file left off; write it every so many seconds (0: never) and at the end, if there is news."""
        self.load(path)
        stop = threading.Event()

        def write_often() -> None:
            while not stop.wait(every):
                try:
                    self.save(path)
                except OSError as error:  # a full disk is no reason to stop answering
                    print(f"{path}: the sessions could not be saved ({error})", file=sys.stderr, flush=True)

        writer = threading.Thread(target=write_often, daemon=True)
        if every:
            writer.start()
        try:
            yield
        finally:
            stop.set()
            if every:
                writer.join()
            self.save(path)

    def save(self, path: str | Path) -> None:
        """All series to a JSON file, whole or not at all; nothing where nothing came since. No row waits for long."""
        if not self.unsaved:
            return
        self.unsaved = False
        try:
            replace_file(Path(path), self._write)
        except OSError:
            self.unsaved = True
            raise

    def _write(self, file: BinaryIO) -> None:
        file.write(b'{"format": %d, "series": {' % FORMAT)
        between = b"\n"
        with self.lock:
            names = list(self.held)
        for series_id in names:
            with self.lock:
                session = self.held.get(series_id)
                state = session and session.state()
            if state:
                text = f"{json.dumps(series_id)}: {json.dumps(state, allow_nan=False)}"
                file.write(between + text.encode())
                between = b",\n"
        file.write(b"}}\n")

    def load(self, path: str | Path) -> None:
        """Go on where `save` left off; nothing where there is no file. Raises UserError for another file."""
        if not Path(path).exists():
            return
        try:
            held = json.loads(Path(path).read_text(encoding="utf-8"))
            if held["format"] != FORMAT:
                raise ValueError(f"format {held['format']}, wanted {FORMAT}")
            self.held.update((series_id, Session.restored(part)) for series_id, part in held["series"].items())
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
