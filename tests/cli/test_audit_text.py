"""The words of `xferbench audit`: what is said of those that are wrong."""

from __future__ import annotations

import pytest

from xferbench.cli import audit_suite, main
from xferbench.core.errors import UserError


def asked(*words):
    return audit_suite.audit_suite(main.build_parser().parse_args(["audit", *words]))


def test_a_file_that_is_not_there_is_named_by_the_option_that_named_it():
    with pytest.raises(UserError) as caught:
        asked("--after", "nowhere.pt", "--data", "digits")
    assert caught.value.what == "--after nowhere.pt"


def test_a_wrong_word_is_sent_to_the_command_line_and_to_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        asked("--arch", "tiny-resnet", "--after", "a.pt", "--data", "digits", "--believed", "trainabel=head")
    assert caught.value.what == "command line: [checkpoint] believed" and caught.value.found == '"trainabel=head"'
