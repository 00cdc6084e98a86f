"""The half that knows torch and no statistics."""

from __future__ import annotations

VERSION = 1  # raised whenever the numbers that come out of the lab change; it is part of every key
