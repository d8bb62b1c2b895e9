"""Copy a recorded run to an MLflow server, through mlflow-skinny (`pip install ml-e2e[mlflow]`).

    run_id = export("runs/vision", "http://localhost:5000", experiment="ml-e2e")

Parameters are the config; metrics the curve, epoch by epoch, the best epoch (`best.*`) and evaluations (`test.*`); tags
the record. run.json, metrics.json and the cards go along as artefacts; weights stay where they are.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from common.cli import UserError
from common.log import read_jsonl
from common.run_record import read_run, scalars

FILES = ("run.json", "metrics.json", "data_manifest.json", "MODEL_CARD.md", "DATA_CARD.md", "croissant.json")
AT_ONCE = 500  # metrics a request; a server takes 1,000, and 100 parameters


def export(run_dir: str | Path, uri: str, experiment: str = "ml-e2e") -> str:
    """Copy one run; its MLflow id. UserError without the extra, and where the server refuses or is not there."""
    try:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise UserError("runs export: mlflow-skinny is not installed; pip install 'ml-e2e[mlflow]'") from error
    run = read_run(run_dir)
    start, end = (int(datetime.fromisoformat(run[key]).timestamp() * 1000) for key in ("started", "ended"))
    points = [Metric(name, value, end, step) for name, value, step in metric_points(Path(run_dir), run)]
    params = [Param(name, str(value)[:6000]) for name, value in run["config"].items()]
    tags = [RunTag(name, str(value)[:5000]) for name, value in tags_of(run).items()]
    try:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else client.create_experiment(experiment)
        run_id = client.create_run(place, start_time=start, run_name=str(run_dir)).info.run_id
        for first in range(0, len(points), AT_ONCE):
            client.log_batch(run_id, metrics=points[first : first + AT_ONCE])
        for first in range(0, len(params), 100):
            client.log_batch(run_id, params=params[first : first + 100])
        client.log_batch(run_id, tags=tags)
        for name in FILES:
            if Path(run_dir, name).exists():
                client.log_artifact(run_id, str(Path(run_dir, name)))
        client.set_terminated(run_id, end_time=end)
    except MlflowException as error:
        raise UserError(f"--mlflow {uri}: {error}") from error
    return run_id


def metric_points(run_dir: Path, run: dict[str, Any]) -> list[tuple[str, float, int]]:
    """(name, value, step): the curve at its epochs; the best epoch's and the evaluations' scores at the best epoch."""
    lines, _ = read_jsonl(run_dir / run["curve"])
    points = [
        (name, value, line["epoch"]) for line in lines for name, value in scalars(line).items() if name != "epoch"
    ]
    step = run["best"]["epoch"]
    points += [(f"best.{name}", value, step) for name, value in scalars(run["best"]).items()]
    points += [
        (f"{name}.{key}", value, step) for name, part in run["eval"].items() for key, value in scalars(part).items()
    ]
    return [(re.sub(r"[^\w./ :-]", "_", name, flags=re.ASCII), float(value), step) for name, value, step in points]


def tags_of(run: dict[str, Any]) -> dict[str, Any]:
    """What is neither a parameter nor a metric."""
    tags = {key: run[key] for key in ("project", "seed", "data_version", "module")} | {"command": " ".join(run["argv"])}
    tags |= {"checkpoint_sha256": run["checkpoint"]["sha256"], "git_dirty": run["git"]["dirty"]}
    tags["mlflow.source.git.commit"] = run["git"]["commit"]
    return tags | {f"version.{name}": value for name, value in run["packages"].items()}
