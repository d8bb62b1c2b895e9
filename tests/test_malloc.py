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
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16 << 20)  # 64 MiB, freed at once
before = faults()
for _ in range(5):
    torch.ones(16 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200  # of 81,920 pages


def test_a_libc_without_mallopt_is_no_error(monkeypatch):
    monkeypatch.setattr("common.malloc.ctypes.CDLL", lambda name: object())
    assert keep_memory() is False
