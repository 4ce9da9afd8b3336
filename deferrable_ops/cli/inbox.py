"""The commands ``deferrable-ops inbox`` and ``keys``: the inbox's tables, old rows and signing keys."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from deferrable_ops.cli.common import add_command, positive, with_inbox

# Importing Airflow takes seconds, so each command imports what it needs when it runs.
if TYPE_CHECKING:
    from deferrable_ops.inbox import Inbox


def upgrade_inbox(_options: argparse.Namespace) -> int:
    """Create the inbox's tables, or upgrade them to the newest schema."""
    from deferrable_ops.inbox.database.schema import HEAD

    # Opening the inbox upgrades it.
    with_inbox(_do_nothing)
    print(f"The inbox is at schema {HEAD}")
    return 0


def prune_inbox(options: argparse.Namespace) -> int:
    """Delete waits and events that are older than their retention."""
    from deferrable_ops import settings

    days = settings.wait_retention_days() if options.days is None else options.days
    event_days = settings.event_retention_days()

    async def prune(inbox: Inbox) -> tuple[int, int]:
        return await inbox.retention.prune(days), await inbox.retention.prune_events(event_days)

    waits, events = with_inbox(prune)
    print(f"Deleted {waits} waits that were settled more than {days:g} days ago")
    print(f"Deleted {events} events that were received more than {event_days} days ago")
    return 0


def rotate_keys(options: argparse.Namespace) -> int:
    """Create a new signing key for new waits."""
    made = with_inbox(lambda inbox: inbox.keys.rotate(revoke_old=options.revoke_old))
    print(f"New waits are signed with key {made}")
    if options.revoke_old:
        print("Tokens of all older keys are refused within 5 s: clear the tasks that still wait for them")
    return 0


async def _do_nothing(_inbox: Inbox) -> None:
    pass


def add_commands(commands: Any) -> None:
    """Add ``inbox``, ``keys`` and their commands to the parser."""
    inbox = add_command(commands, "inbox", "manage the inbox's database").add_subparsers(required=True)
    add_command(inbox, "upgrade", "create or upgrade the tables", upgrade_inbox)
    prune = add_command(inbox, "prune", "delete old waits and events", prune_inbox)
    prune.add_argument(
        "--days",
        type=positive(float),
        help="retention of settled waits; default: [deferrable_ops] wait_retention_days",
    )
    keys = add_command(commands, "keys", "manage the keys that sign callback tokens").add_subparsers(
        required=True
    )
    rotate = add_command(keys, "rotate", "sign new waits with a new key", rotate_keys)
    rotate.add_argument("--revoke-old", action="store_true", help="refuse the tokens of all older keys")
