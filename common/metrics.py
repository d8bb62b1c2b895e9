"""Counters, histograms and gauges as Prometheus reads them, and their sums over several processes.

    metrics = Metrics()
    metrics.count("http_requests_total", 'path="/predict",status="200"')
    metrics.observe("prediction_seconds", 0.0042, 'stage="model"')
    text = render([metrics.snapshot(gauges), *snapshots_of_other_workers])

Text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/). One thread writes; nothing is locked.
"""

from __future__ import annotations

import math
import os
import resource
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
KINDS = {  # name: (type, help, upper bounds of a histogram)
    "http_requests_total": ("counter", "Answers, by path and status.", ()),
    "http_connections": ("gauge", "Open connections.", ()),
    "rejections_total": ("counter", "Requests that got no prediction, by reason.", ()),
    "predictions_total": ("counter", "Predicted items, by label; labels beyond the first hundred are _other.", ()),
    "prediction_seconds": ("histogram", "Time of an answered prediction, by stage; total is their sum.", SECONDS),
    "batch_rows": ("histogram", "Rows in one forward pass.", ROWS),
    "queue_rows": ("gauge", "Rows accepted and not yet through the model.", ()),
    "predictions_in_flight": ("gauge", "Requests accepted and not yet answered.", ()),
    "request_log_lines_lost_total": ("counter", "Lines that the request log could not write.", ()),
    "model_reloads_total": ("counter", "Reloads of the model, by result.", ()),
    "model_info": ("gauge", "The model being served: 1 for each worker that serves it.", ()),
    "model_ready": ("gauge", "Workers that answer predictions now.", ()),
    "worker_restarts_total": ("counter", "Workers that died and were started again.", ()),
    "alarm_firing": ("gauge", "Workers in which the alarm is firing.", ()),
    "alarm_state": ("gauge", "Workers in which the alarm is in the state ok, pending, firing or resolved.", ()),
    "alarm_deliveries_total": ("counter", "Messages about alarms, by sink and result.", ()),
    "drift_effect": ("gauge", "Difference between the latest window and the reference, of the worst worker.", ()),
    "drift_threshold": ("gauge", "The difference from which on a feature has drifted.", ()),
    "drift_p_value": ("gauge", "Chance of such a difference without drift, corrected for all features.", ()),
    "drift_windows_total": ("counter", "Windows that were compared with the reference.", ()),
    "accuracy_expected": ("gauge", "Accuracy of the latest window, expected without labels.", ()),
    "accuracy_labelled": ("gauge", "Accuracy of the latest answers whose labels came back.", ()),
    "feedback_total": ("counter", "Labels that came back, by whether they found their answer.", ()),
    "arm_requests_total": ("counter", "In a rollout: requests by arm (stable, canary, shadow) and result.", ()),
    "arm_seconds": ("histogram", "In a rollout: time until an arm's own answer.", SECONDS),
    "rollout_share": ("gauge", "Part of the requests that the candidate gets, 0 to 1, of the lowest worker.", ()),
    "rollout_status": ("gauge", "Workers whose rollout has this status.", ()),
    "process_resident_memory_bytes": ("gauge", "Resident memory of all workers and their models' processes.", ()),
    "process_cpu_seconds_total": ("counter", "User and system CPU time of the same processes.", ()),
    "process_start_time_seconds": ("gauge", "Unix time at which the oldest worker started.", ()),
}
WORST_OF = {"drift_effect": max, "drift_threshold": max, "drift_p_value": min, "accuracy_expected": min}
WORST_OF |= {
    "rollout_share": min,
    "accuracy_labelled": min,
    "process_start_time_seconds": min,
}  # of workers; the rest is summed
REASONS = {401: "token", 408: "slow_client", 413: "too_large", 429: "queue_full", 500: "failed", 504: "too_late"}
REASONS |= {503: "unavailable"}
MOST_LABELS = 100
START_TIME = time.time()


class Metrics:
    """What one process has counted. Labels come as rendered text, such as `path="/predict",status="200"`."""

    def __init__(self):
        self.counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.histograms: dict[str, dict[str, list]] = defaultdict(dict)
        self._classes: dict[str, str] = {}

    def count(self, name: str, labels: str = "", n: float = 1) -> None:
        """Add `n` to a counter."""
        self.counts[name][labels] += n

    def observe(self, name: str, value: float, labels: str = "") -> None:
        """Put a value into a histogram."""
        self.observe_all(name, (value,), labels)

    def observe_all(self, name: str, values: Sequence[float], labels: str = "") -> None:
        """Put values into a histogram: [sum, counts of each bucket, the last one for what is beyond all bounds]."""
        bounds = KINDS[name][2]
        series = self.histograms[name].get(labels)
        if series is None:
            series = self.histograms[name][labels] = [0.0, [0] * (len(bounds) + 1)]
        series[0] += sum(values)
        counts = series[1]
        for value in values:
            counts[bisect_left(bounds, value)] += 1

    def count_class(self, label: str) -> None:
        """Count a predicted class; a model of ten thousand classes must not make ten thousand series."""
        labels = self._classes.get(label)
        if labels is None:
            labels = f'label="{escaped(label if len(self._classes) < MOST_LABELS else "_other")}"'
            if len(self._classes) < MOST_LABELS:
                self._classes[label] = labels
        self.counts["predictions_total"][labels] += 1

    def snapshot(self, gauges: dict[str, dict[str, float]], helpers: Sequence[int] = ()) -> dict:
        """Plain values for `render`, with memory and CPU time of this process and of its helpers, by their pids.

        gauges: {name: {labels: value}}.
        """
        usage = resource.getrusage(resource.RUSAGE_SELF)
        helped = [usage_of(pid) for pid in helpers]
        process = {
            "process_resident_memory_bytes": {"": resident_bytes() + sum(resident for _, resident in helped)},
            "process_start_time_seconds": {"": START_TIME},
        }
        counts = {name: dict(series) for name, series in self.counts.items()}
        cpu_s = usage.ru_utime + usage.ru_stime + sum(cpu_s for cpu_s, _ in helped)
        counts["process_cpu_seconds_total"] = {"": cpu_s}
        return {"counts": counts, "histograms": dict(self.histograms), "gauges": {**gauges, **process}}


def answer_labels(path: str, predicts: bool, status: int) -> dict[str, str]:
    """The labels of the counters that an answer adds to; one without the prediction it was to give also counts why."""
    labels = {"http_requests_total": f'path="{escaped(path)}",status="{status}"'}
    if predicts and status >= 400:
        labels["rejections_total"] = f'reason="{REASONS.get(status, "invalid")}"'
    return labels


def resident_bytes() -> int:
    """Resident memory of this process; its peak where there is no /proc."""
    return usage_of(os.getpid())[1] or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def usage_of(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of a process; zeros where it is gone, or where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # from the third on, see proc_pid_stat(5)
    except OSError:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def escaped(text: str) -> str:
    """The value of a label, between its quotes."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def merged(snapshots: list[dict]) -> dict:
    """One snapshot that sums several; of the gauges in WORST_OF it keeps the worst."""
    counts: dict = defaultdict(lambda: defaultdict(float))
    gauges: dict = defaultdict(lambda: defaultdict(float))
    histograms: dict = defaultdict(dict)
    for snapshot in snapshots:
        for kind, sums in (("counts", counts), ("gauges", gauges)):
            for name, series in snapshot[kind].items():
                worst = WORST_OF.get(name)
                for labels, value in series.items():
                    known = sums[name].get(labels)
                    sums[name][labels] = value if known is None else worst(known, value) if worst else known + value
        for name, series in snapshot["histograms"].items():
            for labels, (total, buckets) in series.items():
                old_total, old = histograms[name].get(labels, (0.0, [0] * len(buckets)))
                histograms[name][labels] = [old_total + total, [a + b for a, b in zip(old, buckets, strict=True)]]
    return {"counts": counts, "gauges": gauges, "histograms": histograms}


def render(snapshots: list[dict]) -> str:
    """The text of GET /metrics: the sums of all snapshots, every family with its help and type."""
    summed = merged(snapshots)
    lines = []
    for name, (kind, words, bounds) in KINDS.items():
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
        if kind == "histogram":
            for labels, (total, buckets) in sorted(summed["histograms"].get(name, {}).items()):
                lines += _histogram_lines(name, labels, total, buckets, bounds)
            continue
        series = summed["counts" if kind == "counter" else "gauges"].get(name, {})
        lines += [f"{name}{_braced(labels)} {_number(value)}" for labels, value in sorted(series.items())]
    return "\n".join(lines) + "\n"


def _histogram_lines(name: str, labels: str, total: float, buckets: list[int], bounds: tuple) -> list[str]:
    lines, below, before = [], 0, f"{labels}," if labels else ""
    for bound, n in zip([*map(float, bounds), "+Inf"], buckets, strict=True):
        below += n
        lines.append(f'{name}_bucket{{{before}le="{bound}"}} {below}')
    return [*lines, f"{name}_sum{_braced(labels)} {_number(total)}", f"{name}_count{_braced(labels)} {below}"]


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _number(value: float) -> str:
    if value != value or value in (math.inf, -math.inf):
        return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN")
    return str(int(value)) if value == int(value) else repr(float(value))
