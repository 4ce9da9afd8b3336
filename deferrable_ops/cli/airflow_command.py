"""The Airflow command ``airflow deferrable-ops``, which runs the command ``deferrable-ops`` of this library."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.cli.cli_config import CLICommand


def airflow_commands() -> list[CLICommand]:
    """Return the subcommands of this library that Airflow adds to the command ``airflow``.

    Airflow calls this function for each ``airflow`` command.
    """
    from airflow.cli.cli_config import ActionCommand, Arg

    return [
        ActionCommand(
            name="deferrable-ops",
            help="Manage tasks that wait in the Triggerer: their endpoint, waits, channels and inbox",
            func=run,
            args=(
                Arg(  # type: ignore[no-untyped-call]
                    ("arguments",),
                    nargs=argparse.REMAINDER,
                    metavar="COMMAND ...",
                    help="a command of deferrable-ops, for example `waits`, and its arguments, for example `--help`",
                    type=str,
                ),
            ),
        )
    ]


def run(options: argparse.Namespace) -> None:
    """Run ``deferrable-ops`` with the arguments after ``airflow deferrable-ops``, and exit with the same exit code."""
    from deferrable_ops.cli.main import main

    # Without a command, print the list of commands.
    sys.exit(main(options.arguments or ["--help"]))
