"""What every command of the house does alike: its help, and how it says what the user can mend.

    def main(argv=None) -> None:
        args = command_parser(__doc__).parse_args(argv)
        ...

    if __name__ == "__main__":
        run(main)

Reads the command line; writes help to standard output and errors to standard error.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

from common.malloc import keep_memory


class UserError(Exception):
    """Something the user can mend; its text names the thing, the value found, the value wanted and the next step."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines, and ends each flag's help with its default, unless "(default: ..." is there."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        told = "(default:" in text or action.default is None or action.default is argparse.SUPPRESS
        return text if told else f"{text} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the page of flags."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help lists the flags")


def command_parser(doc: str) -> argparse.ArgumentParser:
    """Parser whose `--help` opens with the module docstring `doc`, which starts with an example that works.

    Flags are not guessed from their first letters; a wrong one raises UserError.
    """
    return _Parser(description=doc.strip(), formatter_class=_Help, allow_abbrev=False)


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """`type=` of a flag: an int or float from `low` to `high`, both included; NaN and infinity are refused."""

    def read(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            wanted = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"{text}: wanted {wanted}")
        return value

    read.__name__ = kind.__name__  # argparse names it for a text that is no number
    return read


def check_flag(name: str, given: object, held: object, ckpt: object) -> None:
    """A flag that repeats what the checkpoint (or the data) holds may be left out; given, it has to agree.

    Raises UserError, naming both values, where it does not.
    """
    if given is not None and given != held:
        raise UserError(f"--{name} {given}: {ckpt} has {held}; leave the flag out or pass {held}")


def run(main: Callable[[], None]) -> None:
    """Call `main()`: a UserError becomes one line on stderr and exit status 2, Ctrl-C exit status 130.

    The process keeps the memory it frees (common.malloc).
    """
    keep_memory()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file name may hold any bytes
    try:
        main()
    except UserError as error:
        sys.exit(_say(f"error: {' '.join(str(error).splitlines())}", 2))
    except KeyboardInterrupt:
        sys.exit(_say("stopped", 130))


def _say(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status
