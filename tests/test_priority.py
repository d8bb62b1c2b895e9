"""Threads that step back do so by themselves, also where the whole process was told to."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, threading
from common.priority import yield_to_others

def level(found):
    found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

def step_back(steps, found):
    yield_to_others(steps)
    level(found)

os.nice(5)
found = []
for steps in (1, 10, 19):
    thread = threading.Thread(target=step_back, args=(steps, found))
    thread.start()
    thread.join()
level(found)
print(found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux knows priorities of threads")
def test_a_thread_steps_back_from_where_its_process_is():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = os.getpriority(os.PRIO_PROCESS, 0)
    assert done.stdout.strip() == str([min(19, here + 5 + steps) for steps in (1, 10, 19)] + [min(19, here + 5)])
