"""Keep freed memory in the process: a net asks for the same tens of megabytes step after step, batch after batch.

    from common.malloc import keep_memory
    keep_memory()                                          # before the first big tensor; common.cli.run does it

glibc returns large blocks to the system when they are freed, and the system hands them back page by page, zeroed:
a fifth of a training step on the CPU, and a third of a forward pass over photos.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h; see mallopt(3)


def keep_memory() -> bool:
    """Let freed blocks up to 1 GiB (32 MiB before glibc 2.35) be used again; False where libc cannot (musl, macOS).

    The process then stays as large as its largest moment.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = any(mallopt(M_MMAP_THRESHOLD, 1 << bits) for bits in (30, 25))
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1)) and kept
