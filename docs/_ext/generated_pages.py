"""Pages that are written from the package before Sphinx reads the sources. Writes into docs/generated only.

The plugin pages are the output of ``xferbench ls`` and ``xferbench explain``, the command reference comes from the argument
parser, and the suite reference from ``suites/schema.json``: no page depends on where a module stands.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line

import xferbench

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
GENERATED = DOCS / "generated"
VERSION_LINE = re.compile(r"(\S+) \(version (\d+)\)")
MARKUP = re.compile(r"(``.+?``)", re.DOTALL)  # literals, in which nothing is escaped
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
TABLE_LINK = re.compile(r"\]\(\.\./\.\./reports/benchmarks/([a-z-]+)\.md\)")
TABLES_FOLDER_LINK = re.compile(r"\]\(\.\./\.\./reports/benchmarks\)")
BENCHMARKS = {
    "simulation": "Wrong verdicts and power, by simulation",
    "seed-failures": "Failed runs, and verdicts on their share",
    "scratch": "The searched baseline and a longer search",
    "embedded": "All plugins on the embedded targets",
    "fashion": "From CIFAR-10 to Fashion-MNIST",
    "serving": "Wrong serving of published networks",
    "audit": "Audits of scripts with a planted fault",
    "audit-text": "Audits of text classifiers with a planted fault",
    "healthy": "Audits of healthy networks",
    "situations": "Files and folders as people have them",
    "text": "A sentence encoder with few texts",
    "copies": "The search for copies of images",
    "text-copies": "The search for copies of texts",
    "watch": "The cost of the watch",
    "logs": "Faults in the logs of trainings",
    "gate": "Error rates of the gate",
    "strategies": "Strategies over twelve tasks",
    "claims": "Claims of tutorials",
    "published": "Published effects",
    "full": "The cost of the suite full",
    "times": "How long things take",
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the generator with Sphinx."""
    app.connect("builder-inited", lambda _: write_all())
    app.connect("source-read", lambda _app, _page, source: source.__setitem__(0, link_to_pages(source[0])))
    return {"version": "1", "parallel_read_safe": True}


def link_to_pages(text: str) -> str:
    """Return a page whose links to committed tables, which also work in a clone, are links to the pages of these tables."""
    text = TABLES_FOLDER_LINK.sub(r"](../generated/benchmarks/index.md)", text)
    return TABLE_LINK.sub(r"](../generated/benchmarks/\1.md)", text)


def write_all() -> None:
    """Write every generated page; a page whose plugin or command is gone disappears."""
    pages = dict(pages_to_write())
    for path in GENERATED.rglob("*") if GENERATED.is_dir() else ():
        if path.is_file() and path.relative_to(GENERATED).as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        path = GENERATED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # an unchanged page is not read again
            path.write_text(text, encoding="utf-8")


def pages_to_write() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every generated page."""
    listed = json.loads(command_line.output("ls", "--format", "json"))
    questions = {
        id_.removeprefix("audit/"): question for kind in ("checks", "plugins") for id_, question in listed.get(kind, {}).items()
    }
    for name in questions:
        yield f"plugins/{name}.rst", plugin_page(command_line.output("explain", name))
    experiments = {id_.removeprefix("audit/"): text for id_, text in listed["plugins"].items()}
    audits = {id_.removeprefix("audit/"): text for id_, text in listed.get("checks", {}).items()}
    yield "plugins/index.md", plugin_index(experiments, audits)
    for kind in ("strategies", "backbones", "datasets"):
        rows = [f"| `{name}` | {text} |" for name, text in listed[kind].items()]
        yield (
            f"parts/{kind}.md",
            "\n".join([f"| {kind.removesuffix('s').replace('ie', 'y')} | what it is |", "|---|---|", *rows, ""]),
        )
    yield "command-line.md", command_reference()
    yield "suite-file.md", suite_reference(json.loads((ROOT / "suites" / "schema.json").read_text(encoding="utf-8")))
    yield "python.rst", python_reference()
    for name in sorted(BENCHMARKS):
        yield f"benchmarks/{name}.md", benchmark_page(name)
    yield "benchmarks/index.md", benchmark_index()


# Plugins


def plugin_page(text: str) -> str:
    """Turn the output of ``xferbench explain`` into a page, with a part for each of experiment and audit."""
    lines = text.strip().splitlines()
    starts = [number for number, line in enumerate(lines) if VERSION_LINE.fullmatch(line)]
    parts = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    name = VERSION_LINE.fullmatch(lines[starts[0]]).group(1)
    page = [heading(name, "="), ""]
    for number, part in enumerate(parts):
        body = part[1:]
        if number + 1 < len(parts):  # what introduces the next part is its heading here
            body = body[: max(index for index, line in enumerate(body) if line.strip())]
        if len(parts) > 1:
            page += [
                heading(("Experiment (xferbench run)", "Audit of a checkpoint (xferbench audit)")[min(number, 1)], "-"),
                "",
            ]
        page += manual(body, "~" if len(parts) > 1 else "-")
    return "\n".join(page) + "\n"


def manual(lines: list[str], level: str) -> list[str]:
    """Turn a manual page into sections: an unindented line above an indented one is a heading."""
    page = []
    for number, line in enumerate(lines):
        indented = number + 1 < len(lines) and lines[number + 1].startswith("    ")
        if line and not line[0].isspace() and indented:
            page += ["", heading(line, level), ""]
        else:
            page.append(markup(line.removeprefix("    ")))
    return page


def markup(line: str) -> str:
    """Escape what reStructuredText would read as markup, outside literals, and link papers."""
    pieces = MARKUP.split(line)
    return "".join(piece if piece.startswith("``") else linked(re.sub(r"([|*_`])", r"\\\1", piece)) for piece in pieces)


def linked(text: str) -> str:
    return ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", text)


def heading(text: str, underline: str) -> str:
    return f"{text}\n{underline * max(len(text), 4)}"


def plugin_index(experiments: Mapping[str, str], audits: Mapping[str, str]) -> str:
    """Write the two tables of plugins, and the contents for the side bar."""
    names = sorted({*experiments, *audits})
    return "\n".join(
        [
            "# Plugins",
            "",
            "A plugin asks about one failure mode. This list is written from the plugins that are installed, as `xferbench ls`",
            "prints them. `xferbench explain NAME` prints the page of one.",
            "",
            "## Experiments: `xferbench run`",
            "",
            *table_of_plugins(experiments),
            "",
            "## Audits of a finished checkpoint: `xferbench audit`",
            "",
            *table_of_plugins(audits),
            "",
            "```{toctree}",
            ":hidden:",
            ":maxdepth: 1",
            "",
            *names,
            "```",
            "",
        ]
    )


def table_of_plugins(questions: Mapping[str, str]) -> list[str]:
    return ["| plugin | question |", "|---|---|", *(f"| [{name}]({name}.rst) | {text} |" for name, text in questions.items())]


# The command line


def command_reference() -> str:
    """Write one section for each sub-command, with its usage and a table of its options."""
    top = command_line.parser()
    top.formatter_class = WideHelp
    page = ["# Command line", "", f"{top.description} This page is written from the program's own argument parser.", ""]
    for name, parser in command_line.subparsers(top).items():
        parser.formatter_class = WideHelp
        page += [f"## xferbench {name}", "", sentence(parser.description or ""), "", "```text"]
        page += [*parser.format_usage().strip().splitlines(), "```", "", "| argument | meaning |", "|---|---|"]
        page += [option_row(action) for action in parser._actions if action.help != argparse.SUPPRESS]  # noqa: SLF001 - no public way
        page.append("")
    return "\n".join(page)


class WideHelp(argparse.HelpFormatter):
    """Lines of a fixed width, whatever the terminal."""

    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, width=100)


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def option_row(action: argparse.Action) -> str:
    """Write one row: the names, the values and the help of an argument."""
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper() if action.option_strings else action.dest
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    words = [f"`{name}{'' if action.nargs == 0 else ' ' + value}`" for name in action.option_strings] or [f"`{value}`"]
    text = (action.help or "").replace("|", "\\|")
    default = action.default
    if action.option_strings and default not in (None, False, argparse.SUPPRESS, []) and "default" not in text:
        text = f"{text} (default: `{default}`)".strip()
    return f"| {' '.join(words)} | {text} |"


# The suite file


def suite_reference(schema: Mapping[str, Any]) -> str:
    """Write one section for each table of the suite file."""
    page = [
        "# Suite file",
        "",
        "A suite file is TOML. This page lists every key. It is written from `suites/schema.json`, the JSON Schema with which",
        "an editor can check a suite: put `#:schema PATH` in the first line. Paths are relative to the suite file.",
        "",
        f"Required: {', '.join(f'`{key}`' for key in schema['required'])}, and `[target]` unless a `[matrix]` has its own.",
        "",
        "Every key can be replaced for one run with `--set KEY=VALUE`, for example `--set recipe.lr=1e-2`.",
        "",
    ]
    for name, table in tables("", schema):
        page += [f"## `{name}`" if name else "## Top level", ""]
        if name and table.get("description"):
            page += [sentence(table["description"]), ""]
        page += ["| key | value | default | meaning |", "|---|---|---|---|"]
        page += [key_row(key, value, key in table.get("required", ())) for key, value in properties(table).items()]
        page.append("")
    return "\n".join(page)


def tables(name: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every table of the file with its TOML heading, the outer ones first."""
    yield name, schema
    for key, value in properties(schema).items():
        inner = f"{name.strip('[]')}.{key}".lstrip(".")
        if key in {"preprocessing", "train_preprocessing", "serve_preprocessing"} and name != "[backbone]":
            continue  # the same keys as those of the backbone
        if is_table(value):
            yield from tables(f"[{inner}]", value)
        elif is_table(value.get("items", {})):
            yield from tables(f"[[{inner}]]", value["items"] | {"description": value.get("description", "")})


def is_table(value: Mapping[str, Any]) -> bool:
    return bool(properties(value))


def properties(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys of a table, also of one that has two forms."""
    found = dict(value.get("properties", {}))
    for form in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        found |= {
            key: item for key, item in form.get("properties", {}).items() if key not in found and item.keys() - {"minItems"}
        }
    return found


def key_row(key: str, value: Mapping[str, Any], is_required: bool) -> str:
    default = value.get("default")
    shown = "required" if is_required else "" if default is None else f"`{json.dumps(default)}`"
    text = sentence(value.get("description", "")).replace("|", "\\|").replace("[", "\\[").replace("*", "\\*")
    return f"| `{key}` | {form_of(value)} | {shown} | {text} |"


def form_of(value: Mapping[str, Any]) -> str:
    """Name the type of a key, or the words that it takes."""
    if "enum" in value:
        return ", ".join(f"`{word}`" for word in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if is_table(value):
        return "table"
    if forms := value.get("anyOf"):
        return " or ".join(dict.fromkeys(form_of(form) for form in forms))
    if value.get("type") == "array":
        return "array of tables" if is_table(value.get("items", {})) else "list"
    return {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "table"}.get(
        value.get("type", ""), ""
    )


# Python and the benchmarks


def python_reference() -> str:
    """Write the reference of the public names: the package's own, those for plugin authors, and the conformance kit."""
    page = [heading("Python", "="), "", "This page is written from docstrings.", ""]
    page += members(xferbench, "xferbench")
    if importlib.util.find_spec("xferbench.plugin"):
        above = [getattr(xferbench, name) for name in xferbench.__all__]
        page += members(importlib.import_module("xferbench.plugin"), "xferbench.plugin: for plugin authors", above)
    page += [
        heading("xferbench.testing.conformance: the conformance kit", "-"),
        "",
        ".. autofunction:: xferbench.testing.conformance.conforms",
        "",
    ]
    return "\n".join(page)


def members(module: ModuleType, title: str, above: Sequence[object] = ()) -> list[str]:
    """Write a section with every public name of a module: functions, classes, then other values and modules.

    A value of ``above`` is documented already; Sphinx refuses a second description.
    """
    names = sorted(module.__all__, key=lambda name: (kind_of(getattr(module, name)), name))
    page = [heading(title, "-"), ""]
    for name in names:
        value = getattr(module, name)
        _, directive = kind_of(value)
        path = f"{module.__name__}.{name}"
        if directive != "py:data" and any(value is other for other in above):
            page += [f"``{name}`` is :py:obj:`xferbench.{name}`, see above.", ""]
            continue
        page.append(f".. {directive}:: {path}")
        if directive == "autoclass":
            page += ["   :members:", "   :exclude-members: __init__, __new__"]
        if directive == "py:data":
            page += ["   :no-index:", "", f"   {(value.__doc__ or '').strip().partition(chr(10))[0]}" * inspect.ismodule(value)]
        page.append("")
    return page


def kind_of(value: object) -> tuple[int, str]:
    """Return where a value stands on the page, and the directive that documents it."""
    if inspect.isfunction(value):
        return 0, "autofunction"
    if inspect.isclass(value) and value is not Any:
        return 1, "autoclass"
    return 2, "py:data"


def benchmark_page(name: str) -> str:
    """Copy a measured table, with its links to data files made relative to the copy."""
    text = (ROOT / "reports" / "benchmarks" / f"{name}.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((\w+\.csv)\)", r"](../../../reports/benchmarks/\1)", text)


def benchmark_index() -> str:
    """Write the contents of the measured tables."""
    text = (
        "Every table is measured. `tox -e bench` measures them again, in some hours. "
        "[How far to trust it](../../guide/trust.md) says what they mean."
    )
    names = [f"{title} <{name}>" for name, title in BENCHMARKS.items()]
    return "\n".join(["# Measured tables", "", text, "", "```{toctree}", ":maxdepth: 1", "", *names, "```", ""])
