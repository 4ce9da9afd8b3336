"""The command ``deferrable-ops supervisord``.

The command renders the configuration of a supervisord, runs a step of a Supervisor (``supervisord_steps.py``), lists
the supervisords that the inbox records, and deletes the inbox's record of a supervisord.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.cli import supervisord_steps
from deferrable_ops.cli.common import add_command, print_table, time_text, with_inbox
from deferrable_ops.supervisord import arguments

if TYPE_CHECKING:
    from deferrable_ops.inbox.daemons import DaemonLocation

_COLUMNS: Final = ("NAME", "HOST", "SINCE", "DAG", "RUN")


def list_daemons(_options: argparse.Namespace) -> int:
    """Print the hosts on which supervisords run, as recorded in the inbox."""
    found: list[DaemonLocation] = with_inbox(lambda inbox: inbox.daemons.all())
    rows = [
        (daemon.name, daemon.host, time_text(daemon.since) or "", daemon.dag_id, daemon.run_id)
        for daemon in found
    ]
    print_table([_COLUMNS, *rows])
    return 0


def forget_daemon(options: argparse.Namespace) -> int:
    """Delete the record of a supervisord's host, so that this supervisord can be started on another host."""
    from deferrable_ops.exceptions import InputError

    forgotten: DaemonLocation | None = with_inbox(lambda inbox: inbox.daemons.forget(options.name))
    if forgotten is None:
        raise InputError(
            f"the inbox has no record of the supervisord {options.name}; "
            "run `deferrable-ops supervisord list` to see the names"
        )
    print(
        f"The record of the supervisord {options.name} on {forgotten.host} is deleted; another host may start this "
        "supervisord now"
    )
    print(f"If the host {forgotten.host} comes back, stop the supervisord on that host")
    return 0


def add_commands(commands: Any) -> None:
    """Add ``supervisord`` and its commands to the parser."""
    supervisord = add_command(
        commands,
        "supervisord",
        "render supervisord's configuration, run steps of a Supervisor, and list daemons",
    )
    subcommands = supervisord.add_subparsers(required=True, metavar="COMMAND")
    arguments.add_commands(subcommands)
    supervisord_steps.add_commands(subcommands)
    add_command(subcommands, "list", "list daemons and their hosts", list_daemons)
    forgotten = add_command(
        subcommands, "forget", "delete the record of a daemon whose host is permanently lost", forget_daemon
    )
    forgotten.add_argument("name", metavar="NAME", help="working_dir of the daemon, as `list` shows it")
