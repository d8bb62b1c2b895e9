"""The progress line: on a terminal, in a pipe, and before anything is known."""

import io
import sys

import pytest

from common import log


class Screen(io.StringIO):
    """Standard error as a terminal or as a pipe."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told: clock[0] is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def test_progress_on_a_terminal(monkeypatch, clock):
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = log.Progress(100, "epoch 1")
    for _ in range(50):
        clock[0] += 0.125
        progress.update(2)
    progress.close()
    drawn = screen.getvalue().split("\r")[1:]
    assert len(drawn) == 26  # every second update of 0.125 s is 0.2 s after the last drawn, and close() draws
    assert "epoch 1 50/100  16.0/s  3 s left" in drawn[12]
    assert drawn[-1] == "epoch 1 100/100  16.0/s  6.2 s\x1b[K\n"


@pytest.mark.parametrize(("end_line", "wanted"), [(False, ""), (True, "epoch 1 4/4  2.0/s  2.0 s\n")])
def test_progress_in_a_pipe(monkeypatch, clock, end_line, wanted):
    screen = Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    progress = log.Progress(4, "epoch 1", end_line=end_line)
    for _ in range(4):
        clock[0] += 0.5
        progress.update()
    progress.close()
    assert screen.getvalue() == wanted


def test_progress_before_anything_is_known(clock):
    assert log.Progress(10).text() == "0/10  0.0/s  ? s left"
    unknown = log.Progress(0, "reading")
    unknown.update(4)
    clock[0] += 2
    assert unknown.text() == "reading 4  2.0/s  2.0 s"
