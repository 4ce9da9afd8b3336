"""The command ``deferrable-ops supervisord``: supervisord's file from YAML, and what the inbox knows of daemons."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.cli.common import add_command, print_table, time_text, with_inbox
from deferrable_ops.supervisord import arguments

if TYPE_CHECKING:
    from deferrable_ops.inbox.daemons import DaemonLocation

_COLUMNS: Final = ("NAME", "HOST", "SINCE", "DAG", "RUN")


def list_daemons(_options: argparse.Namespace) -> int:
    """Print where supervisords live, as far as the inbox was told."""
    found: list[DaemonLocation] = with_inbox(lambda inbox: inbox.daemons.all())
    rows = [
        (daemon.name, daemon.host, time_text(daemon.since) or "", daemon.dag_id, daemon.run_id)
        for daemon in found
    ]
    print_table([_COLUMNS, *rows])
    return 0


def forget_daemon(options: argparse.Namespace) -> int:
    """Forget where a supervisord lives, so that another host may start it."""
    from deferrable_ops.exceptions import InputError

    forgotten: DaemonLocation | None = with_inbox(lambda inbox: inbox.daemons.forget(options.name))
    if forgotten is None:
        raise InputError(
            f"the inbox knows no supervisord {options.name}; `deferrable-ops supervisord list` shows them"
        )
    print(f"the supervisord {options.name} is forgotten; it lived on {forgotten.host}")
    print("if that host is not gone for good, stop it there: another one may be started now")
    return 0


def add_commands(commands: Any) -> None:
    """Add ``supervisord`` and its commands to the parser."""
    supervisord = add_command(commands, "supervisord", "make supervisord's file from YAML, and find daemons")
    subcommands = supervisord.add_subparsers(required=True, metavar="COMMAND")
    arguments.add_commands(subcommands)
    add_command(subcommands, "list", "show on which hosts daemons live", list_daemons)
    forgotten = add_command(
        subcommands, "forget", "forget where a daemon lives, whose host is gone for good", forget_daemon
    )
    forgotten.add_argument("name", metavar="NAME", help="as `list` shows it: its working_dir")
