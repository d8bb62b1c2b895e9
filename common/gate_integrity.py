"""Whether the files of a run are what they say: one checkpoint, its record, its data, its scores.

    for name, find in INTEGRITY.items():
        print(name, find(Path("runs/vision"), "test"))      # [] or the reasons, in words

Reads the run folder. Each function gives the reasons against it; a UserError counts as one.
"""

from __future__ import annotations

from pathlib import Path

from common.amp_ckpt import load_ckpt
from common.ckpt_file import without_tensors
from common.data_versions import classes_by_folder, read_manifest, recorded
from common.eval_rows import read_rows, rows_file
from common.log import file_sha256, plain, read_jsonl
from common.releases import CHECKPOINT, REQUIRED, witnesses
from common.run_record import CURVE, PACKAGES, read_json, read_run


def files(run_dir: Path, test_set: str) -> list[str]:
    """All that a release is made of is there, and the rows of the evaluation that is judged."""
    wanted = [*REQUIRED, CURVE, rows_file(test_set)]
    missing = [name for name in wanted if not (run_dir / name).is_file()]
    return [f"{run_dir} lacks {', '.join(missing)}: train, and evaluate on {test_set}"] if missing else []


def checkpoint(run_dir: Path, test_set: str) -> list[str]:
    """The file is the one that its twin and its record name, and the twin says what is in it."""
    sha256 = file_sha256(run_dir / CHECKPOINT)
    found = [
        f"{CHECKPOINT} has the SHA-256 {sha256[:12]}, {witness} names {str(named)[:12]}"
        for witness, named in witnesses(run_dir).items()
        if named != sha256
    ]
    held, twin = plain(without_tensors(load_ckpt(run_dir / CHECKPOINT))), read_json(run_dir / "best.json")
    other = sorted(key for key in held.keys() | twin.keys() - {"file", "sha256"} if held.get(key) != twin.get(key))
    return [*found, *([f"best.json does not say what {CHECKPOINT} holds: {', '.join(other)}"] if other else [])]


def record(run_dir: Path, test_set: str) -> list[str]:
    """run.json says what the checkpoint says, and the files of the training are those of its end."""
    run, ckpt = read_run(run_dir), plain(without_tensors(load_ckpt(run_dir / CHECKPOINT)))
    origin = ckpt["provenance"]
    pairs = {
        "project": ckpt["project"],
        "config": ckpt["config"],
        "seed": origin["seed"],
        "data_version": origin["data_version"],
        "started": origin["utc"],
        "git": {"commit": origin["git_commit"], "dirty": origin["git_dirty"]},
        "packages": {name: origin[name] for name in PACKAGES},
        "best": {"epoch": ckpt["epoch"], **ckpt["metrics"]},
    }
    found = [f"run.json and {CHECKPOINT} differ in {key}" for key, value in pairs.items() if run.get(key) != value]
    for name, sha256 in run.get("files", {}).items():
        if file_sha256(run_dir / name) != sha256:
            found.append(f"{name} is not the one that the training ended with")
    lines, torn = read_jsonl(run_dir / CURVE)
    if torn or ckpt["epoch"] not in [line.get("epoch") for line in lines]:
        found.append(f"{CURVE} is torn, or lacks epoch {ckpt['epoch']}, which the checkpoint is of")
    return found


def data_record(run_dir: Path, test_set: str) -> list[str]:
    """The data's manifest, its list of files and the checkpoint are of one version, and so are the classes."""
    then, manifest, ckpt = recorded(run_dir), read_manifest(run_dir), load_ckpt(run_dir / CHECKPOINT)
    found = []
    if manifest["data_version"] != ckpt["provenance"]["data_version"]:
        found.append("data_manifest.json is of another data version than the checkpoint")
    classes = ckpt["assets"].get("classes")
    if classes is not None and list(manifest.get("classes", {})) != list(classes):
        found.append("the classes of data_manifest.json and of the checkpoint differ")
    by_folder = classes_by_folder(then.files)
    for kind, counts in manifest.get("classes", {}).items() if by_folder else ():
        if by_folder.get(kind, {}) != {split: n for split, n in counts.items() if n}:
            found.append(f"data_manifest.json counts {counts} of class {kind}, data_files.csv {by_folder.get(kind)}")
    return found


def evaluation_record(run_dir: Path, test_set: str) -> list[str]:
    """The scores in metrics.json are of this checkpoint and of the rows beside them."""
    scores = read_run(run_dir)["eval"].get(test_set)
    if not isinstance(scores, dict) or not isinstance(scores.get("rows"), dict):
        return [f"metrics.json has no evaluation on {test_set} with rows: evaluate on it"]
    rows, path = scores["rows"], run_dir / rows_file(test_set)
    found = []
    if scores.get("model_id") != (sha256 := file_sha256(run_dir / CHECKPOINT))[:12]:
        found.append(f"the scores are of model {scores.get('model_id')}, the checkpoint is {sha256[:12]}")
    if rows.get("sha256") != file_sha256(path):
        found.append(f"{path.name} is not the one that metrics.json names")
    table = read_rows(path)
    values = [float(value) for value in table[rows["score"]]]
    if abs(sum(values) / len(values) - rows["mean"]) > 1e-9:
        found.append(
            f"{path.name} has a mean {rows['score']} of {sum(values) / len(values):.6g}, not {rows['mean']:.6g}"
        )
    if rows["score"] == "correct":
        right = [truth == pred for truth, pred in zip(table["truth"], table["pred"], strict=True)]
        if right != [value == 1 for value in values]:
            found.append(f"{path.name} calls answers right that are not")
        if "accuracy" in scores and abs(scores["accuracy"] - rows["mean"]) > 1e-9:
            found.append(f"metrics.json says accuracy {scores['accuracy']:.6g}, the rows give {rows['mean']:.6g}")
    return found


INTEGRITY = {
    "files": files,
    "checkpoint": checkpoint,
    "record": record,
    "data record": data_record,
    "evaluation record": evaluation_record,
}
