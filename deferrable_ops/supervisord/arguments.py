"""The command line arguments of the commands ``render`` and ``check``.

This module does not import the configuration models, because importing pydantic is slow.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deferrable_ops.supervisord.kinds import KINDS


def add_commands(commands: Any) -> None:
    """Add the commands ``render`` and ``check`` to an argument parser."""
    render = _add(
        commands, "render", "print supervisord's configuration file, or write it to a path", _render
    )
    render.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="write the file to PATH with mode 0600; required if the configuration contains a password",
    )
    _add(commands, "check", "validate a configuration and print a summary", _check)


def add_file_command(
    commands: Any, name: str, summary: str, run: Any, default: str
) -> argparse.ArgumentParser:
    """Add a command whose argument is a YAML file with a configuration.

    :param default: the kind of the configuration if neither the option ``--as`` nor the key ``_target_`` in the file
        selects a kind.
    """
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    command.set_defaults(run=run)
    command.add_argument("file", type=Path, metavar="FILE", help="the configuration, in YAML")
    command.add_argument(
        "--as",
        dest="kind",
        choices=KINDS,
        help="plain: only supervisord's sections; airflow or ssh: also the defaults that a DAG uses. Without --as, "
        f"_target_ in FILE selects the kind; without _target_, the kind is {default}",
    )
    return command


def _add(commands: Any, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    return add_file_command(commands, name, summary, run, "plain")


def _render(options: argparse.Namespace) -> int:
    from deferrable_ops.supervisord.command import render

    return render(options)


def _check(options: argparse.Namespace) -> int:
    from deferrable_ops.supervisord.command import check

    return check(options)
