from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from xferbench.report import templates

VALUES = {"title": "", "sentence": "", "sides": (), "environment": (), "comparison": {}}


def test_values_are_escaped():
    assert "&lt;b&gt; &amp; &#34;" in templates.render_template("comparison.html.j2", **VALUES | {"sentence": '<b> & "'})


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError):
        templates.render_template("comparison.html.j2", **{name: value for name, value in VALUES.items() if name != "sentence"})


def test_the_page_may_not_load_other_files():
    assert "default-src 'none'" in templates.render_template("comparison.html.j2", **VALUES)
