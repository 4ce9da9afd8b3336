"""The command ``deferrable-ops supervisord``.

The command renders the configuration of a supervisord, runs a step of a Supervisor (``supervisord_steps.py``), lists
the supervisords that the inbox records, and deletes the inbox's record of a supervisord. It also writes requests to
stop a supervisord or to restart a program to the inbox. A triggerer that reaches the machine of the supervisord carries
out such a request.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.cli import supervisord_steps
from deferrable_ops.cli.common import add_command, positive, print_table, time_text, with_inbox
from deferrable_ops.supervisord import arguments

if TYPE_CHECKING:
    from deferrable_ops.inbox import Inbox
    from deferrable_ops.inbox.daemons import DaemonLocation
    from deferrable_ops.inbox.requests import Request, RequestKind

_COLUMNS: Final = ("NAME", "HOST", "SINCE", "DAG", "RUN")
_REQUEST_COLUMNS: Final = ("REQUEST", "MADE", "STATE", "ACTION", "SUPERVISORD", "BY", "ANSWER")
# A request that a user makes is given up after an hour: a later stop or restart would surprise the user.
_LASTS: Final = 3600.0
_WAIT: Final = 120.0
_ASK_INTERVAL: Final = 0.5


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
    forgotten: DaemonLocation | None = with_inbox(lambda inbox: inbox.daemons.forget(options.name))
    if forgotten is None:
        raise _unknown(options.name)
    print(
        f"The record of the supervisord {options.name} on {forgotten.host} is deleted; another host may start this "
        "supervisord now"
    )
    print(f"If the host {forgotten.host} comes back, stop the supervisord on that host")
    return 0


def stop_daemon(options: argparse.Namespace) -> int:
    """Make a request to stop a supervisord and its programs. Wait for the answer of a triggerer, and print it."""
    from deferrable_ops.inbox.requests import RequestKind

    return _make_request(options, RequestKind.STOP)


def restart_program(options: argparse.Namespace) -> int:
    """Make a request to restart one program of a supervisord. Wait for the answer of a triggerer, and print it."""
    from deferrable_ops.inbox.requests import RequestKind

    return _make_request(options, RequestKind.RESTART, program=options.program)


def list_requests(_options: argparse.Namespace) -> int:
    """Print the requests of the last 14 days to stop a supervisord or restart a program, the newest first."""
    found: list[Request] = with_inbox(lambda inbox: inbox.requests.all())
    rows = [
        (
            request.id,
            time_text(request.created_at) or "",
            request.state,
            _action(request),
            request.target,
            request.actor,
            request.answer,
        )
        for request in found
    ]
    print_table([_REQUEST_COLUMNS, *rows])
    return 0


def _make_request(options: argparse.Namespace, kind: RequestKind, *, program: str | None = None) -> int:
    from deferrable_ops.exceptions import InputError
    from deferrable_ops.inbox.requests import RequestState, arguments_for

    async def make(inbox: Inbox) -> Request:
        daemon = await inbox.daemons.find(options.name)
        if daemon is None:
            raise _unknown(options.name)
        programs = daemon.details.get("programs")
        if program is not None and programs is not None and program not in programs:
            raise InputError(
                f"the supervisord {options.name} has no program {program!r}; its programs are {', '.join(programs)}"
            )
        arguments = arguments_for(daemon) | ({} if program is None else {"program": program})
        actor = f"{getpass.getuser()}@{socket.gethostname()}"
        request = await inbox.requests.add(kind, options.name, arguments, actor, lasts=_LASTS)
        print(f"Request {request.id} is waiting for a triggerer that reaches {daemon.host}", flush=True)
        ends_at = time.monotonic() + options.wait
        while request.done_at is None and time.monotonic() < ends_at:
            await asyncio.sleep(_ASK_INTERVAL)
            request = await inbox.requests.get(request.id) or request
        return request

    request: Request = with_inbox(make)
    if request.done_at is None:
        print(
            f"The request is {request.state} after {options.wait:g} s{request.answer and ': '}{request.answer}. The "
            "triggerers give up the request after an hour; to see its result, run `deferrable-ops supervisord requests`"
        )
        return 1
    print(f"{request.state.capitalize()}: {request.answer}")
    return 0 if request.state is RequestState.DONE else 1


def _action(request: Request) -> str:
    program = request.arguments.get("program")
    return request.kind if program is None else f"{request.kind} {program}"


def _unknown(name: str) -> Exception:
    from deferrable_ops.exceptions import InputError

    return InputError(
        f"the inbox has no record of the supervisord {name}; run `deferrable-ops supervisord list` to see the names"
    )


def _seconds(text: str) -> float:
    return 0.0 if text == "0" else float(positive(float)(text))


def add_commands(commands: Any) -> None:
    """Add the command ``supervisord``, with its subcommands, to the argument parser of ``deferrable-ops``."""
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
    stopped = add_command(
        subcommands, "stop", "request a triggerer to stop a daemon and its programs", stop_daemon
    )
    restarted = add_command(
        subcommands, "restart", "request a triggerer to restart one program of a daemon", restart_program
    )
    for command in (forgotten, stopped, restarted):
        command.add_argument("name", metavar="NAME", help="name of the daemon, as `list` shows it")
    restarted.add_argument(
        "program", metavar="PROGRAM", help="name of a program in the daemon's configuration"
    )
    for command in (stopped, restarted):
        command.add_argument(
            "--wait",
            type=_seconds,
            metavar="SECONDS",
            default=_WAIT,
            help="how long to wait for the answer; 0: do not wait; default: %(default)g",
        )
    add_command(subcommands, "requests", "list requests and what became of them", list_requests)
