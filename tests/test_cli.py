"""Help that tells every default, and errors that a person can act on."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common import cli

ROOT = Path(cli.__file__).resolve().parent.parent
COMMAND = '''"""python command.py --rate 0.5

Keeps 100 % of
its lines.
"""
import argparse
from common.cli import UserError, command_parser, run

def main(argv=None):
    parser = command_parser(__doc__)
    parser.add_argument("--rate", type=float, default=0.5, help="share")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--mixup", type=float, default=0.0, help="alpha")
    parser.add_argument("--empty", default="", help="text")
    parser.add_argument("--size", type=int, default=0, help="pixels (default: what suits)")
    parser.add_argument("--mode", default="a", help="the default mode or another")
    parser.add_argument("--optional", help="checked when given")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, default=True, help="mixed precision")
    parser.add_argument("--strict", action=argparse.BooleanOptionalAction, default=False, help="stop at the first")
    parser.add_argument("--end", choices=["user", "bug", "stop", "well"], default="well", help="how")
    end = parser.parse_args(argv).end
    if end == "user":
        raise UserError("--rate 7: wanted 0 to 1\\n  see --help")
    if end == "bug":
        raise RuntimeError("a bug")
    if end == "stop":
        raise KeyboardInterrupt

if __name__ == "__main__":
    run(main)
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "command.py"
    path.write_text(COMMAND)

    def call(*flags: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
        return subprocess.run([sys.executable, path, *flags], env=env, capture_output=True, text=True, timeout=60)

    return call


def test_help_shows_every_default_once(command):
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "python command.py --rate 0.5\n\nKeeps 100 % of\nits lines.\n" in done.stdout
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=-)", done.stdout)]
    told = {entry.split()[0].strip(","): entry for entry in entries}
    for flag, default in {
        "--rate": "0.5",
        "--workers": "0",
        "--mixup": "0.0",
        "--empty": "",
        "--size": "what suits",
        "--mode": "a",
        "--amp": "True",
        "--strict": "False",
        "--end": "well",
    }.items():
        assert told[flag].endswith(f"(default: {default})"), told[flag]
        assert told[flag].count("(default:") == 1
    assert "(default" not in told["--optional"] + told["-h"]


@pytest.mark.parametrize(
    ("end", "status", "stderr"),
    [("well", 0, ""), ("user", 2, "error: --rate 7: wanted 0 to 1   see --help\n"), ("stop", 130, "stopped\n")],
)
def test_exit_status_and_one_line(command, end, status, stderr):
    done = command("--end", end)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", stderr)


def test_a_bug_keeps_its_traceback(command):
    done = command("--end", "bug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: a bug" in done.stderr


def test_a_command_keeps_the_memory_it_frees(monkeypatch):
    order = []
    monkeypatch.setattr(cli, "keep_memory", lambda: order.append("kept"))
    cli.run(lambda: order.append("ran"))
    assert order == ["kept", "ran"]


def test_an_unknown_flag_is_refused(command):
    done = command("--rat_e", "1")
    assert done.returncode == 2
    assert "--rat_e" in done.stderr


def test_check_flag():
    cli.check_flag("num_classes", None, 6, "best.pt")
    cli.check_flag("num_classes", 6, 6, "best.pt")
    cli.check_flag("min", 0, 0, "best.pt")
    with pytest.raises(cli.UserError, match=r"^--num_classes 0: best\.pt has 6; leave the flag out or pass 6$"):
        cli.check_flag("num_classes", 0, 6, Path("best.pt"))


def test_making_a_parser_touches_nothing():
    assert isinstance(cli.command_parser("one line"), argparse.ArgumentParser)
