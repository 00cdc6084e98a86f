"""Errors for wrong options of ``xferbench audit``."""

from __future__ import annotations

import pytest

from xferbench.cli import audit_suite, main
from xferbench.core.errors import UserError


def parse_audit(*arguments):
    return audit_suite.audit_suite(main.build_parser().parse_args(["audit", *arguments]))


def test_a_missing_file_is_named_with_its_option():
    with pytest.raises(UserError) as error:
        parse_audit("--after", "nowhere.pt", "--data", "digits")
    assert error.value.what == "--after nowhere.pt"


def test_a_wrong_value_is_an_error_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        parse_audit("--arch", "tiny-resnet", "--after", "a.pt", "--data", "digits", "--believed", "trainabel=head")
    assert error.value.what == "command line: [checkpoint] believed" and error.value.found == '"trainabel=head"'
