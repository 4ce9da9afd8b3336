"""The commands ``deferrable-ops inbox`` and ``keys``: the inbox's tables, old rows and signing keys."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from deferrable_ops.cli.common import RETRY_TIMEOUT, add_command, positive, time_text, with_inbox

# Importing Airflow takes seconds, so each command imports what it needs when it runs.
if TYPE_CHECKING:
    from deferrable_ops.inbox import Inbox


def upgrade_inbox(options: argparse.Namespace) -> int:
    """Create or upgrade the inbox's tables.

    With ``--check``, do not change the tables, and return 1 if their schema does not fit this release.
    """
    import asyncio

    from deferrable_ops import settings
    from deferrable_ops.inbox.database.database import Database
    from deferrable_ops.inbox.database.migrate import schema_version, upgrade
    from deferrable_ops.inbox.database.schema import HEAD

    async def run() -> int:
        database = Database(settings.inbox_url(), RETRY_TIMEOUT, settings.inbox_url)
        try:
            if not options.check:
                await upgrade(database)
            version = await schema_version(database)
        finally:
            await database.close()
        reader = f", for releases that know {version.oldest_reader} or newer" if version.oldest_reader else ""
        print(f"The inbox has schema {version.number or 'none'}{reader}; this release has {HEAD}")
        if version.is_too_new:
            print("Install a newer release: this one cannot use the tables")
        elif version.is_outdated:
            print("Upgrade the tables with: deferrable-ops inbox upgrade")
        return int(version.is_too_new or version.is_outdated)

    return asyncio.run(run())


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


def adopt_inbox(options: argparse.Namespace) -> int:
    """Make a deployment of Airflow the owner of the inbox."""
    from deferrable_ops.metadata_database import read_deployment

    deployment: str = options.deployment or read_deployment()
    before = with_inbox(lambda inbox: inbox.owner.adopt(deployment))
    print(f"The inbox belongs to deployment {deployment}")
    if before is not None and before.deployment != deployment:
        print(
            f"Before, it belonged to deployment {before.deployment} since {time_text(before.adopted_at)}. The tasks of "
            "that deployment now wait, and launch and cancel nothing"
        )
    return 0


def rotate_keys(options: argparse.Namespace) -> int:
    """Create a new key, which signs the tokens of new waits."""
    made = with_inbox(lambda inbox: inbox.keys.rotate(revoke_old=options.revoke_old))
    print(f"New waits are signed with key {made}")
    if options.revoke_old:
        print(
            "Tokens of all older keys are refused within 5 s; clear the tasks that still wait with such a token"
        )
    return 0


def add_commands(commands: Any) -> None:
    """Add ``inbox``, ``keys`` and their commands to the parser."""
    inbox = add_command(commands, "inbox", "manage the inbox's database").add_subparsers(required=True)
    upgrade = add_command(inbox, "upgrade", "create or upgrade the tables", upgrade_inbox)
    upgrade.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit status 1 if the tables do not fit this release",
    )
    prune = add_command(inbox, "prune", "delete old waits and events", prune_inbox)
    prune.add_argument(
        "--days",
        type=positive(float),
        help="retention of settled waits; default: [deferrable_ops] wait_retention_days",
    )
    adopt = add_command(
        inbox,
        "adopt",
        "make a deployment of Airflow the owner of the inbox; only its processes launch and cancel",
        adopt_inbox,
    )
    adopt.add_argument(
        "deployment",
        nargs="?",
        metavar="DEPLOYMENT",
        help="id of the deployment, as the logs show it; default: the deployment of this Airflow",
    )
    keys = add_command(commands, "keys", "manage the keys that sign callback tokens").add_subparsers(
        required=True
    )
    rotate = add_command(keys, "rotate", "sign new waits with a new key", rotate_keys)
    rotate.add_argument("--revoke-old", action="store_true", help="refuse the tokens of all older keys")
