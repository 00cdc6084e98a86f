"""Render the HTML templates; each page is a single file and every value is escaped. Reads the templates."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from xferbench.report import format


def render_template(template: str, **values: Any) -> str:
    """Render a template of this package; a missing value is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"line": format.one_line, "seconds": format.format_seconds, "percent": format.format_percent}
    return environment.get_template(template).render(values)


def _template_source(name: str) -> str:
    return files("xferbench.report").joinpath(name).read_text(encoding="utf-8")
