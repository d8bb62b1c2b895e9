"""The rules of the house, kept by reading the code: imports, documented flags, symmetry, sizes."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, python

PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")
PROJECTS = [name for name in PACKAGES if name.startswith("project_")]
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
RUN_TIME = {"torch", "numpy", "PIL"}
EXTRAS = {"matplotlib": "report.py", "mlflow": "mlflow_export.py"}  # package: the one file that may ask for it
COMMANDS = [
    f"{path.parent.name}.{path.stem}"
    for path in FILES
    if path.name != "cli.py" and "command_parser(__doc__)" in path.read_text(encoding="utf-8")
]


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path):
    allowed = RUN_TIME | set(sys.stdlib_module_names) | {"common"}
    allowed |= {path.parent.name} if path.parent.name in PROJECTS else set()
    allowed |= {name for name, file in EXTRAS.items() if path.name == file}
    assert imported(path) <= allowed


def test_test_modules_are_short_and_lean_on_no_other_test_module():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, path
        assert ast.get_docstring(ast.parse(text)) or not text, path
        assert not re.search(r"^from tests\.test_", text, re.MULTILINE), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_docstrings(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert len(text.splitlines()) <= 300
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= (80 if node.name == "train" else 45), f"{node.name} has {lines} lines"
        if isinstance(node, ast.ExceptHandler):
            assert not all(isinstance(inner, ast.Pass) for inner in node.body), f"line {node.lineno} swallows an error"


def test_importing_everything_changes_nothing():
    """No folder, no log line, no thread, no seed: torch's generator is as it was."""
    modules = [f"{path.parent.name}.{path.stem}" for path in FILES if path.stem != "__init__"]
    code = (
        "import random, threading, torch, importlib; before = torch.initial_seed(), random.getstate()\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "assert (torch.initial_seed(), random.getstate()) == before and threading.active_count() == 1"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_every_default(command):
    done = python(command, "--help")
    assert done.returncode == 0, done.stderr
    first = next(line for line in done.stdout.splitlines() if line.startswith("python -m"))
    assert first.startswith(f"python -m {command}")
    for entry in done.stdout.split("\n  -")[2:]:
        assert len(entry.split(None, 1)) == 2, f"a flag without help: {entry}"


CONTRACT = {
    "project_vision_cls.train": "--train_root --val_root --num_classes --epochs --bs --lr --amp --no-amp --ema "
    "--no-ema --patience --seed --run_dir",
    "project_vision_cls.eval": "--ckpt --val_root --num_classes --bs",
    "project_vision_cls.inference": "--ckpt --input_dir --out_csv",
    "project_vision_cls.serve": "--ckpt --port --max_batch --window_ms",
    "project_ts_forecast.train": "--epochs --bs --lr --win --h --hidden --amp --seed --run_dir",
    "project_ts_forecast.eval": "--ckpt",
    "project_ts_forecast.batch_predict": "--ckpt --out",
    "project_ts_forecast.serve": "--ckpt --port",
    "project_nlp_intent.train": "--train_jsonl --val_jsonl --num_classes --epochs --bs --lr --max_len --max_vocab "
    "--amp --seed --run_dir",
    "project_nlp_intent.eval": "--ckpt --run_dir --val_jsonl --bs",
    "project_nlp_intent.inference": "--ckpt --inp",
    "project_nlp_intent.serve": "--ckpt --port --max_batch --window_ms",
}


@pytest.mark.parametrize("command", CONTRACT)
def test_the_flags_of_the_contract_are_there(command):
    words = python(command, "--help").stdout.replace(",", " ").split()
    assert set(CONTRACT[command].split()) <= set(words)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("common.seed", "seed_all"),
        ("common.amp_ckpt", "AmpScaler EarlyStopper EMA save_ckpt load_ckpt CheckpointError"),
        ("common.meter", "AverageMeter accuracy_topk confusion_matrix ece f1 brier nll temperature coverage"),
        ("common.log", "JsonlLogger CsvLogger"),
        ("common.monitor_core", "SlidingWindow Alarm AlarmManager psi ks mmd"),
        ("project_vision_cls.data", "ImageFolder make_loader to_tensor"),
        ("project_vision_cls.model", "SmallCNN"),
        ("project_ts_forecast.data", "SeriesWindow make_loader"),
        ("project_ts_forecast.model", "LSTMForecaster"),
        ("project_nlp_intent.data", "tokenize build_vocab encode IntentDataset make_loader"),
        ("project_nlp_intent.model", "TextCNN"),
    ],
)
def test_the_names_of_the_contract_are_importable(module, names):
    held = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(held, name)] == []


@pytest.mark.parametrize("project", PROJECTS)
def test_projects_agree_by_name(project):
    stems = {path.stem for path in (ROOT / project).glob("*.py")}
    assert {"data", "model", "train", "eval", "inference", "serve"} <= stems
    assert len((ROOT / project / "serve.py").read_text().splitlines()) <= 60
    assert hasattr(importlib.import_module(f"{project}.inference"), "Predictor")
