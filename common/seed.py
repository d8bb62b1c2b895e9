"""One seed for everything that draws numbers.

    from common.seed import seed_all, seed_worker
    seed_all(42)                                           # at the start of a run
    seed_all(42 + epoch)                                   # at the top of every epoch: a resumed run draws the same
    DataLoader(..., num_workers=2, worker_init_fn=seed_worker)

Same seed, same machine, same number of threads: the same weights, bit for bit, on CPU.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def seed_all(seed: int, deterministic: bool = False) -> None:
    """Seed `random`, NumPy and torch (CPU and every CUDA device).

    deterministic: also refuse the CUDA kernels that do not repeat (torch then raises RuntimeError and names the
    operation). CPU runs repeat without it.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy takes 32 bits
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with a fixed workspace
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)


def seed_worker(worker_id: int) -> None:
    """`worker_init_fn` of a DataLoader: torch has seeded itself in the worker, `random` and NumPy follow it."""
    seed = torch.initial_seed()
    random.seed(seed)
    np.random.seed(seed % 2**32)
