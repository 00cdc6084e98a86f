"""The conformance kit for plugins, and a lab that trains nothing (:mod:`xferbench.testing.fake_lab`). Imports no torch."""

from __future__ import annotations

from xferbench.testing.conformance import conforms
from xferbench.testing.intervention_conformance import intervention_conforms

__all__ = ["conforms", "intervention_conforms"]
