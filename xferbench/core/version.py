"""The version of the package, and of what the lab computes. Pure."""

from __future__ import annotations

__version__ = "0.1.0"

LAB_VERSION = 1  # increased if the lab's numbers change; it is part of every key
