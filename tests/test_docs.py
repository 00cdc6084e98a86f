"""Every command, suite, Python block, option and link of the README, of CONTRIBUTING and of the pages in docs/."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
from factory import make_run

import xferbench
from xferbench.report import files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "_ext"))

import command_line
import generated_pages

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in DOCS.rglob("*.md") if not {"_build", "generated"} & set(path.relative_to(DOCS).parts)),
]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OPERATORS = {"&&", "||", ";", "|", ">", ">>", "(", ")"}
OTHER_PROGRAMS = {"--runslow", "--rungpu", "--check", "--numprocesses", "--output", "--seeds"}  # options of theirs
TABLES = {"backbone", "target", "source", "shifted", "recipe", "scratch", "checkpoint", "matrix"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(*languages):
    """Every fenced block in one of some languages, each with an id."""
    return [
        pytest.param(match[3], id=f"{name_of(path)}:{path.read_text(encoding='utf-8')[: match.start()].count(chr(10)) + 1}")
        for path in PAGES
        for match in FENCE.finditer(path.read_text(encoding="utf-8"))
        if match[2] in languages
    ]


def prose(path):
    """The text of a page outside its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def commands(block):
    """The words after each ``xferbench`` of a shell block; a shell variable is 1."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"\$\{?\w+\}?", "1", line), posix=True, punctuation_chars=True)
        lexer.wordchars += "$=,:%[]…"
        words = list(lexer)
        for start, word in enumerate(words):
            begins = start == 0 or words[start - 1] in OPERATORS | {"do"}
            if begins and (word == "xferbench" or word.endswith("/xferbench")):
                end = next((at for at in range(start, len(words)) if words[at] in OPERATORS), len(words))
                yield words[start + 1 : end]


BLOCK_COMMANDS = [
    pytest.param(words, id=f"{block.id}-{' '.join(words)}") for block in blocks("sh") for words in commands(block.values[0])
]
INLINE_COMMANDS = [
    pytest.param(words, id=f"{name_of(path)}-{' '.join(words)}")
    for path in PAGES
    for code in INLINE.findall(prose(path))
    if re.match(r"(\.venv/bin/)?xferbench( |$)", code) and (words := code.split()[1:])
]


@pytest.fixture(scope="module")
def subparsers():
    return command_line.subparsers(command_line.parser())


def options(parser):
    return {word for action in parser._actions for word in action.option_strings}


# Commands


@pytest.mark.parametrize("words", BLOCK_COMMANDS)
def test_a_command_of_a_block_is_accepted_by_the_parser(words, capsys):
    try:
        arguments = command_line.parser().parse_args(words)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    suite = getattr(arguments, "suite", None)
    if suite and "." not in suite:
        assert (ROOT / "suites" / f"{suite}.toml").is_file(), "a bare name is a shipped suite"


@pytest.mark.parametrize("words", INLINE_COMMANDS)
def test_a_command_in_the_text_exists_with_its_options(words, subparsers):
    name, *rest = words
    if name.startswith("-"):
        assert name in options(command_line.parser())
        return
    assert name in subparsers
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= options(subparsers[name])
    if name == "run" and rest and rest[0].islower() and "." not in rest[0] and rest[0][0] != "-":
        assert (ROOT / "suites" / f"{rest[0]}.toml").is_file(), "a bare name is a shipped suite"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_an_option_in_the_text_exists(path, subparsers, request):
    known = OTHER_PROGRAMS.union(*map(options, subparsers.values()))
    found = {word for code in INLINE.findall(prose(path)) for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    of_pytest = {word for word in found if word.startswith("--xferbench")}
    for word in of_pytest:
        request.config.getoption(word)  # a ValueError where pytest has no such option
    assert {word for word in found - of_pytest if not word.endswith("-")} <= known


@pytest.mark.parametrize("block", blocks("sh"))
def test_the_pytest_options_of_a_block_exist(block, request):
    for word in re.findall(r"--xferbench[\w-]*", block):
        request.config.getoption(word)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_tox_environment_in_the_text_exists(path):
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    for name in re.findall(r"tox -e (\w+)", path.read_text(encoding="utf-8")):
        assert f"[testenv:{name}]" in tox


NAMES = sorted({entry.name for entry in entry_points(group="xferbench.plugins")})
RUNNABLE = [
    ["ls"],
    ["ls", "--format", "json"],
    *(["explain", name] for name in NAMES),
    ["validate", "--no-files", *sorted(path.stem for path in (ROOT / "suites").glob("*.toml"))],
]


@pytest.mark.parametrize("words", RUNNABLE, ids=" ".join)
def test_a_command_that_is_cheap_runs(words):
    assert command_line.output(*words)


def test_every_command_has_a_help_page(capsys):
    for name in command_line.subparsers(command_line.parser()):
        with pytest.raises(SystemExit, match="0"):
            command_line.command()([name, "--help"])
        assert f"usage: xferbench {name}" in capsys.readouterr().out


def test_finished_results_are_compared_and_rendered(tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    accepted, folder = str(ROOT / "suites" / "gate.accepted.json"), tmp_path / "run"
    command_line.output("compare", accepted, accepted, "-o", str(tmp_path / "compared"))
    assert (tmp_path / "compared" / "comparison.html").is_file()
    files.write_run(make_run(evidence={"command": "xferbench run quick"}), folder)
    for form in ("text", "latex", "checklist"):
        assert command_line.output("report", str(folder), "--format", form)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {path.name for path in folder.iterdir() if f"`{path.name}`" in readme or f"/{path.name}`" in readme}
    assert named == {path.name for path in folder.iterdir()}, "the README names every file of a report"


# Suites


def as_suite(text):
    """A block as a whole suite: one that shows a few tables gets the required keys."""
    data = tomllib.loads(text)
    if "schema" in data or not data.keys() & TABLES:
        return text if "schema" in data else ""
    head = 'schema = 1\nname = "fragment"\nplugins = ["all"]\n'
    if "backbone" not in data:
        head += '[backbone]\narch = "tiny-resnet"\n'
    elif "arch" not in data["backbone"]:
        text = text.replace("[backbone]\n", '[backbone]\narch = "tiny-resnet"\n')
    return head + ("" if "target" in data else '[target]\ndata = "synthetic:near"\n') + text


@pytest.mark.parametrize("block", blocks("toml"))
def test_a_suite_is_valid(block, tmp_path):
    if not (text := as_suite(block)):
        assert "entry-points" in tomllib.loads(block)["project"], "neither a suite nor an entry point"
        return
    (tmp_path / "shown.toml").write_text(text, encoding="utf-8")
    assert "a valid suite" in command_line.output("validate", "--no-files", "--allow-code", str(tmp_path / "shown.toml"))


def test_the_pages_show_every_kind_of_suite():
    shown = [tomllib.loads(block.values[0]) for block in blocks("toml")]
    kinds = {key for suite in shown if "schema" in suite for key in suite.keys() & {"recipe", "checkpoint", "matrix"}}
    assert kinds == {"recipe", "checkpoint", "matrix"}


# Python


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_compiles_and_names_what_exists(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xferbench":
            assert hasattr(xferbench, node.attr)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xferbench"):
            trainer = re.match(r"xferbench\.callbacks\.(\w+)", node.module)
            if not trainer or importlib.util.find_spec(trainer[1]):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names)
            else:
                assert importlib.util.find_spec(node.module)


def block_with(word, page):
    text = (DOCS / page).read_text(encoding="utf-8")
    return next(match[3] for match in FENCE.finditer(text) if match[2] == "python" and word in match[3])


def test_the_python_example_runs(monkeypatch, capsys):
    called = []

    def run(suite, **options):
        called.append((suite, options))
        return make_run()

    monkeypatch.setattr(xferbench, "run", run)
    names = {}
    exec(block_with("xferbench.run(", "getting-started.md"), names)
    assert called == [("quick", {"output": "reports/quick"})] and capsys.readouterr().out
    assert len(names["frame"]) == len(names["run"].cells)


def test_the_watch_example_runs(capsys):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    model[0].requires_grad_(requires_grad=False)
    exec(block_with("xferbench.watch(", "guide/watch.md"), {"xferbench": xferbench, "model": model, "optimizer": optimizer})
    assert "0 steps watched" in capsys.readouterr().out


def test_the_pytest_example_runs():
    names = {}
    exec(block_with("xferbench_run", "guide/gate.md"), names)
    findings = [SimpleNamespace(benefit_retained=share) for share in (0.9, None)]
    names["test_pretraining_pays"](SimpleNamespace(findings=findings))


def test_the_training_example_says_what_it_respects():
    names = {}
    exec(block_with("train.supports", "guide/weights.md"), names)
    assert names["train"].supports == {"lr", "steps"} and names["train"]("model", None, None, 0) == "model"


# Links and files


def targets(path):
    """Every file that a page links to, includes or offers."""
    text = path.read_text(encoding="utf-8")
    outside = prose(path)
    found = re.findall(r"\]\(([^)\s]+)\)", outside) + re.findall(r"\{download\}`[^`<]*<([^>]+)>`", outside)
    found += re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE)
    return [target.partition("#")[0] for target in found if not re.match(r"https?:|#", target)]


@pytest.fixture(scope="module")
def generated():
    return dict(generated_pages.pages_to_write())


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_link_leads_to_a_file(path, generated):
    for target in targets(path):
        to = (path.parent / target).resolve()
        if (DOCS / "generated") in to.parents:
            assert to.relative_to(DOCS / "generated").as_posix() in generated
        else:
            assert to.is_file(), f"{target} does not exist"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_file_of_the_repository_that_is_named_exists(path):
    places = r"(?:suites|tests|xferbench|docs|\.github|reports/benchmarks|reports/samples)/[\w./-]+\.\w+"
    ignored = {"docs/_build/html"}
    for word in re.findall(rf"(?<![\w/.]){places}", path.read_text(encoding="utf-8")):
        if word not in ignored and not (path.parent / word).is_file():
            assert (ROOT / word).is_file(), f"{word} does not exist"


@pytest.mark.parametrize("path", PAGES[2:], ids=name_of)
def test_a_page_is_reached_from_the_index(path):
    if path == DOCS / "index.md":
        return
    page = path.relative_to(DOCS).with_suffix("").as_posix()
    contents = [
        ((toc.parent.relative_to(DOCS) / (re.search(r"<(.+)>", line) or [line, line])[1]).as_posix())
        for toc in PAGES[2:]
        for block in re.findall(r"```\{toctree\}\n(.*?)```", toc.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
        if line and not line.startswith(":")
    ]
    assert page in contents


# Pages that are written from the code


def test_every_plugin_has_a_page_with_its_sections(generated):
    listed = json.loads(command_line.output("ls", "--format", "json"))
    for name in {id_.removeprefix("audit/") for kind in ("plugins", "checks") for id_ in listed.get(kind, {})}:
        page = generated[f"plugins/{name}.rst"]
        assert all(re.search(rf"^{heading}\n[-~]+$", page, re.MULTILINE) for heading in ("Symptom", "Cause", "Remedy"))
        assert f"]({name}.rst)" in generated["plugins/index.md"]


def test_the_suite_reference_has_every_key(generated):
    def keys(table):
        for key, value in table.get("properties", {}).items():
            yield key
            yield from keys(value)
            yield from keys(value.get("items", {}))

    schema = json.loads((ROOT / "suites" / "schema.json").read_text(encoding="utf-8"))
    assert {key for key in keys(schema) if f"| `{key}` |" not in generated["suite-file.md"]} == set()


def test_the_command_reference_has_every_option(generated, subparsers):
    for name, parser in subparsers.items():
        section = generated["command-line.md"].partition(f"## xferbench {name}\n")[2].partition("\n## ")[0]
        visible = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        assert all(word in section for action in visible for word in action.option_strings or [action.metavar or action.dest])


def test_the_python_reference_has_every_public_name(generated):
    assert all(f":: xferbench.{name}\n" in generated["python.rst"] for name in xferbench.__all__)


def test_every_measured_table_has_a_page(generated):
    tables = {path.stem for path in (ROOT / "reports" / "benchmarks").glob("*.md")}
    assert tables == generated_pages.BENCHMARKS.keys()
    assert all(f"benchmarks/{name}.md" in generated for name in tables)


def test_the_formats_page_has_every_key_of_the_results(tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    files.write_run(make_run(), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    page = (DOCS / "guide" / "formats.md").read_text(encoding="utf-8")
    assert {key for key in [*results, *results["findings"][0]] if f"`{key}`" not in page} == set()
    columns = (tmp_path / "records.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert {name for name in columns[:10] if f"`{name}`" not in page} == set()


# The README


def text_block(path, word):
    text = path.read_text(encoding="utf-8")
    return next(match[3] for match in FENCE.finditer(text) if match[2] == "text" and word in match[3])


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_continuous_integration_runs_the_test_command_of_the_readme():
    shell = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extract = next(line for line in shell.splitlines() if line.startswith("command="))
    command = subprocess.run(
        ["bash", "-c", f'{extract}; echo "$command"'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert command == "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox"


def test_the_transcript_of_the_readme_is_a_shortened_one():
    shown = text_block(ROOT / "README.md", "CHECK").split("…\n")
    whole = text_block(DOCS / "getting-started.md", "CHECK")
    places = [whole.find(part) for part in shown]
    assert len(shown) > 1 and -1 not in places and places == sorted(places)


def test_the_transcript_is_that_of_the_sample_report():
    sample = (ROOT / "reports" / "samples" / "quick" / "summary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w/-]+) \| \*\*(\w+)\*\* \| ([^|]+) \|", sample, re.MULTILINE)
    transcript = re.sub(r"\n {20,}", " ", text_block(DOCS / "getting-started.md", "CHECK"))  # a long name has a line of its own
    shown = re.findall(
        r"^([a-z][\w/-]+) +(PASS|FAIL|INCONCLUSIVE|SKIPPED|ERROR) +(\S+(?: \[[^\]]+\])?)", transcript, re.MULTILINE
    )
    assert len(rows) > 5
    assert [(name, verdict, harm.strip()) for name, verdict, harm in rows] == shown
