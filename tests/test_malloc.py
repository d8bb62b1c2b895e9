"""pytest tests/test_malloc.py

Freed memory is used again without page faults, where libc can.
"""

import platform
import subprocess
import sys

import pytest

from common.malloc import keep_memory
from tests.conftest import ROOT

FAULTS = """
import resource, torch
from common.malloc import keep_memory
assert keep_memory() is True
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 8, 3))
for step in range(8):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    net(torch.ones(32, 3, 64, 64)).sum().backward()  # some 60 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    # page faults: some 40,000 without it; a system short of memory, which takes idle pages back, makes some of its own
    assert int(done.stdout) < 10_000


def test_a_libc_without_mallopt_is_no_error(monkeypatch):
    monkeypatch.setattr("common.malloc.ctypes.CDLL", lambda name: object())
    assert keep_memory() is False
