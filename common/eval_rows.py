"""What an evaluation found for every example, so that two models can be compared on the same ones.

    metrics |= write_rows(run_dir, "test", columns, "correct", slices, sys.argv[1:])
    rows = read_rows(run_dir / "eval_rows_test.csv")            # {"id": [...], "correct": [...], "slice.class": [...]}

Writes `eval_rows_<name>.csv`: id, truth, pred, prob, `correct` (0 or 1) or `loss` (lower is better), `slice.<kind>`,
and `group` where examples hang together (overlapping windows, near-copies): they are then drawn together.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.ckpt_file import replace_file
from common.cli import UserError
from common.log import file_sha256

SCORES = ("correct", "loss")


def write_rows(
    run_dir: Path,
    name: str,
    columns: Mapping[str, Sequence],
    score: str,
    slices: Mapping[str, Sequence[str]],
    argv: Sequence[str],
) -> dict:
    """Write the file, and return what metrics.json keeps of it: its hash, its mean score, and the command to repeat it.

    columns: all of one length, "id" and `score` among them. argv: the flags of the evaluation.
    """
    assert score in SCORES, f"found the score {score!r}, wanted one of {SCORES}"
    assert score in columns, f"found the columns {list(columns)}, wanted {score!r} among them"
    table = {**columns, **{f"slice.{kind}": values for kind, values in slices.items()}}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(table)
    rows.writerows(zip(*table.values(), strict=True))
    path = run_dir / rows_file(name)
    replace_file(path, lambda file: file.write(text.getvalue().encode("utf-8", "surrogateescape")))
    mean = sum(map(float, table[score])) / len(table[score])
    kept = {"file": path.name, "sha256": file_sha256(path), "score": score, "mean": mean}
    return {"rows": kept, "command": {"argv": list(map(str, argv)), "cwd": os.getcwd()}}


def rows_file(name: str) -> str:
    """The file of an evaluation part of metrics.json."""
    return f"eval_rows_{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.csv"


def read_rows(path: Path) -> dict[str, list[str]]:
    """{column: values}; UserError where the file is not there, torn, or lacks id or a score."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = list(csv.reader(file))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; evaluate first") from error
    except ValueError as error:
        raise UserError(f"{path}: empty; evaluate again") from error
    if "id" not in header or not set(header) & set(SCORES) or any(len(row) != len(header) for row in rows) or not rows:
        raise UserError(f"{path}: wanted whole rows with id and one of {', '.join(SCORES)}; evaluate again")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}
