"""Pages are one file each: templates that share their head, every value escaped."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from xferbench.report import text


def render(template: str, **told: Any) -> str:
    """Fill in one of this package's templates; a value that it names and is not given is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"line": text.line, "seconds": text.seconds, "percent": text.percent}
    return environment.get_template(template).render(told)


def _template(name: str) -> str:
    return files("xferbench.report").joinpath(name).read_text(encoding="utf-8")
