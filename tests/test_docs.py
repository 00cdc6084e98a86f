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
OTHER_PROGRAMS = {"--runslow", "--rungpu", "--check", "--numprocesses", "--output", "--seeds"}  # options of other programs
TABLES = {"backbone", "target", "source", "shifted", "recipe", "scratch", "checkpoint", "matrix"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(*languages):
    """Return every fenced block in one of the languages, with an id."""
    return [
        pytest.param(match[3], id=f"{name_of(path)}:{path.read_text(encoding='utf-8')[: match.start()].count(chr(10)) + 1}")
        for path in PAGES
        for match in FENCE.finditer(path.read_text(encoding="utf-8"))
        if match[2] in languages
    ]


def prose(path):
    """Return the text of a page without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def commands(block):
    """Yield the arguments of each ``xferbench`` in a shell block; a shell variable becomes 1."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"\$\{?\w+\}?", "1", line), posix=True, punctuation_chars=True)
        lexer.wordchars += "$=,:%[]…"
        tokens = list(lexer)
        for start, token in enumerate(tokens):
            is_command_start = start == 0 or tokens[start - 1] in OPERATORS | {"do"}
            if is_command_start and (token == "xferbench" or token.endswith("/xferbench")):
                end = next((index for index in range(start, len(tokens)) if tokens[index] in OPERATORS), len(tokens))
                yield tokens[start + 1 : end]


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
    return {option for action in parser._actions for option in action.option_strings}


# Commands


@pytest.mark.parametrize("command", BLOCK_COMMANDS)
def test_the_parser_accepts_a_command_of_a_block(command, capsys):
    try:
        arguments = command_line.parser().parse_args(command)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    suite = getattr(arguments, "suite", None)
    if suite and "." not in suite:
        assert (ROOT / "suites" / f"{suite}.toml").is_file(), "a bare name is a shipped suite"


@pytest.mark.parametrize("arguments", INLINE_COMMANDS)
def test_a_command_in_the_text_exists_with_its_options(arguments, subparsers):
    name, *rest = arguments
    if name.startswith("-"):
        assert name in options(command_line.parser())
        return
    assert name in subparsers
    assert {option.partition("=")[0] for option in rest if option.startswith("-")} <= options(subparsers[name])
    if name == "run" and rest and rest[0].islower() and "." not in rest[0] and rest[0][0] != "-":
        assert (ROOT / "suites" / f"{rest[0]}.toml").is_file(), "a bare name is a shipped suite"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_an_option_in_the_text_exists(path, subparsers, request):
    known_options = OTHER_PROGRAMS.union(*map(options, subparsers.values()))
    used_options = {option for code in INLINE.findall(prose(path)) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    pytest_options = {option for option in used_options if option.startswith("--xferbench")}
    for option in pytest_options:
        request.config.getoption(option)  # raises ValueError for an unknown option
    assert {option for option in used_options - pytest_options if not option.endswith("-")} <= known_options


@pytest.mark.parametrize("block", blocks("sh"))
def test_the_pytest_options_of_a_block_exist(block, request):
    for option in re.findall(r"--xferbench[\w-]*", block):
        request.config.getoption(option)


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


@pytest.mark.parametrize("arguments", RUNNABLE, ids=" ".join)
def test_a_fast_command_runs(arguments):
    assert command_line.output(*arguments)


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
    mentioned = {path.name for path in folder.iterdir() if f"`{path.name}`" in readme or f"/{path.name}`" in readme}
    assert mentioned == {path.name for path in folder.iterdir()}, "the README names every file of a report"


# Suites


def complete_suite(text):
    """Return a block as a complete suite; a block with only a few tables gets the required keys."""
    data = tomllib.loads(text)
    if "schema" in data or not data.keys() & TABLES:
        return text if "schema" in data else ""
    header = 'schema = 1\nname = "fragment"\nplugins = ["all"]\n'
    if "backbone" not in data:
        header += '[backbone]\narch = "tiny-resnet"\n'
    elif "arch" not in data["backbone"]:
        text = text.replace("[backbone]\n", '[backbone]\narch = "tiny-resnet"\n')
    return header + ("" if "target" in data else '[target]\ndata = "synthetic:near"\n') + text


@pytest.mark.parametrize("block", blocks("toml"))
def test_a_suite_is_valid(block, tmp_path):
    if not (text := complete_suite(block)):
        assert "entry-points" in tomllib.loads(block)["project"], "neither a suite nor an entry point"
        return
    (tmp_path / "shown.toml").write_text(text, encoding="utf-8")
    assert "a valid suite" in command_line.output("validate", "--no-files", "--allow-code", str(tmp_path / "shown.toml"))


def test_the_pages_show_every_kind_of_suite():
    suites = [tomllib.loads(block.values[0]) for block in blocks("toml")]
    kinds = {key for suite in suites if "schema" in suite for key in suite.keys() & {"recipe", "checkpoint", "matrix"}}
    assert kinds == {"recipe", "checkpoint", "matrix"}


# Python


@pytest.mark.parametrize("block", blocks("python"))
def test_a_python_block_compiles_and_uses_existing_names(block):
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


def block_with(phrase, page):
    text = (DOCS / page).read_text(encoding="utf-8")
    return next(match[3] for match in FENCE.finditer(text) if match[2] == "python" and phrase in match[3])


def test_the_python_example_runs(monkeypatch, capsys):
    calls = []

    def run(suite, **options):
        calls.append((suite, options))
        return make_run()

    monkeypatch.setattr(xferbench, "run", run)
    names = {}
    exec(block_with("xferbench.run(", "getting-started.md"), names)
    assert calls == [("quick", {"output": "reports/quick"})] and capsys.readouterr().out
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


def test_the_training_example_declares_what_it_supports():
    names = {}
    exec(block_with("train.supports", "guide/weights.md"), names)
    assert names["train"].supports == {"lr", "steps"} and names["train"]("model", None, None, 0) == "model"


# Links and files


def targets(path):
    """Return every file that a page links to, includes or offers for download."""
    text = path.read_text(encoding="utf-8")
    text_outside_blocks = prose(path)
    links = re.findall(r"\]\(([^)\s]+)\)", text_outside_blocks) + re.findall(
        r"\{download\}`[^`<]*<([^>]+)>`", text_outside_blocks
    )
    links += re.findall(r"^```\{include\} (\S+)$", text, re.MULTILINE)
    return [target.partition("#")[0] for target in links if not re.match(r"https?:|#", target)]


@pytest.fixture(scope="module")
def generated():
    return dict(generated_pages.pages_to_write())


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_link_points_to_a_file(path, generated):
    for target in targets(path):
        file = (path.parent / target).resolve()
        if (DOCS / "generated") in file.parents:
            assert file.relative_to(DOCS / "generated").as_posix() in generated
        else:
            assert file.exists(), f"{target} does not exist"


def test_a_link_to_a_committed_table_becomes_a_link_to_its_page():
    text = "[Table](../../reports/benchmarks/audit.md), [all](../../reports/benchmarks), [x](../../reports/samples/x.md)"
    assert generated_pages.link_to_pages(text) == (
        "[Table](../generated/benchmarks/audit.md), [all](../generated/benchmarks/index.md), [x](../../reports/samples/x.md)"
    )


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_named_file_of_the_repository_exists(path):
    pattern = r"(?:suites|tests|xferbench|docs|\.github|reports/benchmarks|reports/samples)/[\w./-]+\.\w+"
    ignored = {"docs/_build/html"}
    for name in re.findall(rf"(?<![\w/.]){pattern}", path.read_text(encoding="utf-8")):
        if name not in ignored and not (path.parent / name).is_file():
            assert (ROOT / name).is_file(), f"{name} does not exist"


@pytest.mark.parametrize("path", PAGES[2:], ids=name_of)
def test_the_index_leads_to_each_page(path):
    if path == DOCS / "index.md":
        return
    page = path.relative_to(DOCS).with_suffix("").as_posix()
    linked_pages = [
        ((toc.parent.relative_to(DOCS) / (re.search(r"<(.+)>", line) or [line, line])[1]).as_posix())
        for toc in PAGES[2:]
        for block in re.findall(r"```\{toctree\}\n(.*?)```", toc.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
        if line and not line.startswith(":")
    ]
    assert page in linked_pages


# Generated pages


def test_every_plugin_has_a_page_with_its_sections(generated):
    listing = json.loads(command_line.output("ls", "--format", "json"))
    for name in {id_.removeprefix("audit/") for kind in ("plugins", "checks") for id_ in listing.get(kind, {})}:
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
        assert all(
            option in section for action in visible for option in action.option_strings or [action.metavar or action.dest]
        )


def test_the_python_reference_has_every_public_name(generated):
    assert all(f":: xferbench.{name}\n" in generated["python.rst"] for name in xferbench.__all__)


def test_every_benchmark_table_has_a_page(generated):
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


def text_block(path, phrase):
    text = path.read_text(encoding="utf-8")
    return next(match[3] for match in FENCE.finditer(text) if match[2] == "text" and phrase in match[3])


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_continuous_integration_runs_the_test_command_of_the_readme():
    shell = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extract = next(line for line in shell.splitlines() if line.startswith("command="))
    command = subprocess.run(
        ["bash", "-c", f'{extract}; echo "$command"'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert command == "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox"


def test_the_transcript_of_the_readme_is_an_excerpt():
    parts = text_block(ROOT / "README.md", "CHECK").split("…\n")
    transcript = text_block(DOCS / "getting-started.md", "CHECK")
    positions = [transcript.find(part) for part in parts]
    assert len(parts) > 1 and -1 not in positions and positions == sorted(positions)


def test_the_transcript_equals_the_sample_report():
    sample = (ROOT / "reports" / "samples" / "quick" / "summary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w/-]+) \| \*\*(\w+)\*\* \| ([^|]+) \|", sample, re.MULTILINE)
    # a long name stands on its own line
    transcript = re.sub(r"\n {20,}", " ", text_block(DOCS / "getting-started.md", "CHECK"))
    transcript_rows = re.findall(
        r"^([a-z][\w/-]+) +(PASS|FAIL|INCONCLUSIVE|SKIPPED|ERROR) +(\S+(?: \[[^\]]+\])?)", transcript, re.MULTILINE
    )
    assert len(rows) > 5
    assert [(name, verdict, harm.strip()) for name, verdict, harm in rows] == transcript_rows
