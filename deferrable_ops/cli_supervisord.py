"""The command ``deferrable-ops supervisord``: supervisord's file from YAML."""

from __future__ import annotations

from typing import Any

from deferrable_ops.cli_common import add_command
from deferrable_ops.supervisord import arguments


def add_commands(commands: Any) -> None:
    """Add ``supervisord`` and its commands to the parser."""
    supervisord = add_command(commands, "supervisord", "make supervisord's file from YAML")
    arguments.add_commands(supervisord.add_subparsers(required=True, metavar="COMMAND"))
