from __future__ import annotations

import io
import sys

import pytest

from xferbench.core.guarded_output import GuardedOutput, guard_output, unguarded


class Terminal(io.StringIO):
    def isatty(self):
        return True


def written(*texts, stream=io.StringIO):
    output = stream()
    guarded = GuardedOutput(output)
    assert [guarded.write(text) for text in texts] == list(map(len, texts))
    return output.getvalue()


@pytest.mark.parametrize(
    "texts",
    [
        ["::error::x"],
        ["fine\n::error::x"],
        ["fine\n", ":", ":error::x"],
        [" ", "\t::warning::x\n"],
        ["\u00a0::warning::x"],
        ["a\r::add-mask::x"],
        ["a\u2028::add-mask::x"],
        ["##[error]x"],
        ["a ##[error]x", "\n#", "#", "[add-mask]x"],
        ["\x1b[1A::stop-commands::x"],
    ],
)
def test_no_line_is_a_command_of_a_workflow(monkeypatch, texts):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    output = written(*texts)
    assert not any(line.strip().startswith("::") for line in io.StringIO(output.replace("\r", "\n")))
    assert "##[" not in output
    assert output.replace(" ", "").count(":") == "".join(texts).count(":"), "nothing is lost"


def test_other_lines_stay_as_they_are(monkeypatch):
    text = "module::name 1::2\n## [a](b)\n\tx\n"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert written(text, text) == 2 * text
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert written("::error::x") == "::error::x"


def test_only_colors_and_a_terminal_may_have_control_characters(monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    color, redraw = "\x1b[1;31mred\x1b[0m", "\r\x1b[2K\x1b[1A"
    assert written(color) == written(color, stream=Terminal) == color
    assert written(redraw, stream=Terminal) == redraw
    assert written(redraw).replace(" ", "") == "[2K[1A"
    for hostile in ("\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "a\u202eb", "a\u2066b", "\x00\x08"):
        for stream in (io.StringIO, Terminal):
            assert written(hostile, stream=stream).isprintable(), hostile


def test_the_streams_are_guarded_inside_only(monkeypatch, capsys):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    before = sys.stdout, sys.stderr
    with guard_output():
        sys.stdout.write("::error::out\n")
        sys.stderr.writelines(["::error::err", "\n"])
        unguarded(sys.stderr).write("::notice::meant\n")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == (": :error::out\n", ": :error::err\n::notice::meant\n")
