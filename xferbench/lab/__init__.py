"""The half that knows torch and no statistics."""

from __future__ import annotations
