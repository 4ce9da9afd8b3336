"""What the commands ``render`` and ``check`` take: kept apart from the models, which a parser does not need."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deferrable_ops.supervisord.kinds import KINDS


def add_commands(commands: Any) -> None:
    """Add ``render`` and ``check`` to a parser's commands."""
    rendered = _add(commands, "render", "print supervisord's file, or write it", _render)
    rendered.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="write there, with mode 0600; needed where the configuration holds a password",
    )
    _add(commands, "check", "say whether a configuration can be rendered, and what it comes to", _check)


def _add(commands: Any, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    command.set_defaults(run=run)
    command.add_argument("file", type=Path, metavar="FILE", help="the configuration, in YAML")
    command.add_argument(
        "--as",
        dest="kind",
        choices=KINDS,
        help="plain: supervisord's sections alone; airflow, ssh: filled in as for a DAG; default: what _target_ in "
        "FILE says, else plain",
    )
    return command


def _render(options: argparse.Namespace) -> int:
    from deferrable_ops.supervisord.command import render

    return render(options)


def _check(options: argparse.Namespace) -> int:
    from deferrable_ops.supervisord.command import check

    return check(options)
