"""``xferbench explain``: show the manual page of a plugin. Imports the plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xferbench.analysis import exit_code
from xferbench.cli import options
from xferbench.core.errors import UserError, suggest

if TYPE_CHECKING:
    import argparse

    from xferbench.core.plugin import Plugin


def add_parser(subparsers: options.Subparsers) -> None:
    """Add the command and its options."""
    parser = options.add_command(subparsers, "explain", "show the manual page of a plugin", run_command)
    parser.add_argument("plugin")


def run_command(arguments: argparse.Namespace) -> int:
    """Print the page of the experiment, and that of the audit if it differs."""
    from xferbench.runner import discovery

    name = arguments.plugin.removeprefix("audit/")
    if name not in discovery.plugin_names():
        raise UserError(f"no plugin {name!r}", expected=suggest(name, discovery.plugin_names()))
    by_kind = discovery.plugin_kinds(name)
    experiment, audit = by_kind.get("experiment"), by_kind.get("audit")
    if experiment is not None:
        print(_format_page(experiment))
    if audit is not None and audit != experiment:
        print(("\n\nOf a finished checkpoint (xferbench audit):\n\n" if experiment else "") + _format_page(audit))
    return exit_code.PASSED


def _format_page(plugin: Plugin) -> str:
    return f"{plugin.id} (version {plugin.version})\n{plugin.question}\n\n{plugin.doc.strip()}"
