"""The command ``deferrable-ops``: its parser, ``serve``, and the exit codes.

Exit codes: 0 for success; 1 if the operation is rejected or the inbox is unavailable; 2 if the input or the
configuration is invalid.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from deferrable_ops.cli import channels, doctor, inbox, supervisord, waits
from deferrable_ops.cli.common import add_command, airflow_as_library, positive


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    # Without this, Airflow's logging would print Alembic's messages among the command's output.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from deferrable_ops.exceptions import ConfigurationError, DeferrableOpsError, InputError

    try:
        # The endpoint runs for long, and some commands read the metadata database.
        needs_all_of_airflow = options.run in (serve, inbox.adopt_inbox, doctor.examine) or any(
            vars(options).get(option) for option in ("answered", "orphaned")
        )
        with nullcontext() if needs_all_of_airflow else airflow_as_library():
            code: int = options.run(options)
    except (InputError, ConfigurationError) as error:
        print(f"deferrable-ops: {error}", file=sys.stderr)
        return 2
    except DeferrableOpsError as error:
        print(f"deferrable-ops: {error}", file=sys.stderr)
        return 1
    return code


def serve(options: argparse.Namespace) -> int:
    """Serve the endpoint until interrupted."""
    from deferrable_ops.endpoint.serving import serve_until_interrupted

    serve_until_interrupted(
        host=options.host,
        port=options.port,
        workers=options.workers,
        trusted_proxies=options.trusted_proxies,
        certificate=options.certificate,
        private_key=options.private_key,
        json_log=options.log_format == "json",
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "deferrable-ops",
        description="Manage Airflow tasks that wait in the Triggerer: their endpoint, waits, channels and inbox.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    waits.add_commands(commands)
    channels.add_commands(commands)
    supervisord.add_commands(commands)
    inbox.add_commands(commands)
    doctor.add_commands(commands)
    return parser


def _add_serve(commands: Any) -> None:
    command = add_command(commands, "serve", "serve the endpoint outside Airflow's API server", serve)
    # On all interfaces, because outside services connect from other machines.
    command.add_argument("--host", default="0.0.0.0", help="listening address; default: %(default)s")  # noqa: S104
    command.add_argument("--port", type=int, default=8090, help="port of the endpoint; default: %(default)s")
    command.add_argument(
        "--workers", type=positive(int), default=1, help="number of processes; default: %(default)s"
    )
    command.add_argument(
        "--trusted-proxies",
        default="127.0.0.1",
        metavar="ADDRESSES",
        help="comma-separated addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted; "
        "default: %(default)s",
    )
    command.add_argument(
        "--certificate",
        metavar="FILE",
        help="TLS certificate; without a certificate, the endpoint serves plain HTTP",
    )
    command.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="format of the log; default: %(default)s",
    )
    command.add_argument("--private-key", metavar="FILE", help="private key of the certificate")
