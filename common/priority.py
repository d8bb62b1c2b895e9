"""Which threads of a process go first where cores are few.

    yield_to_others(1)          # in a decode thread: the event loop goes first, which has clients to turn away

Only Linux knows priorities of threads; elsewhere this does nothing.
"""

from __future__ import annotations

import os
import sys
import threading


def yield_to_others(steps: int) -> None:
    """Let this thread be `steps` nicer than its process; each step costs it a fifth of its share, see sched(7)."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + steps))
