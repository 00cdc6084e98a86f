"""Settings of torch that every worker process needs. Imports torch."""

from __future__ import annotations

import torch


def configure(*, threads: int) -> None:
    """Set the number of threads, and make cuDNN deterministic, because results are bit-identical per device."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic = True
