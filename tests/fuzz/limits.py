"""Limits of the time and the memory that a test needs for hostile input."""

from __future__ import annotations

import resource
import signal
from contextlib import contextmanager

SECONDS = 10  # of one input
BYTES = 500_000_000  # by which all inputs of a test together may enlarge the process


@contextmanager
def time_limit(seconds=SECONDS):
    """Raise a TimeoutError if the block takes longer."""

    def interrupt(*_):
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limit(limit=BYTES):
    """Fail if the largest size of the process grows by more than ``limit`` bytes within the block."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < limit
