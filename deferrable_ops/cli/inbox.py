"""``deferrable-ops inbox`` manages the inbox's tables and rows; ``deferrable-ops keys`` manages its signing keys."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.cli.common import (
    RETRY_TIMEOUT,
    add_command,
    positive,
    print_table,
    time_text,
    with_inbox,
)

# Importing Airflow takes seconds, so each command imports what it needs when it runs.
if TYPE_CHECKING:
    from deferrable_ops.inbox import Inbox

# Seconds for commands that read or write all rows.
_LONG_TIMEOUT: Final = 3600.0


def upgrade_inbox(options: argparse.Namespace) -> int:
    """Create or upgrade the inbox's tables.

    With ``--check``, do not change the tables. Then return 1 if this release must upgrade the tables or cannot use the
    tables.
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
        reader = (
            f" (releases with schema {version.oldest_reader} or newer can use this inbox)"
            if version.oldest_reader
            else ""
        )
        print(f"The inbox has schema {version.number or 'none'}{reader}; this release has schema {HEAD}")
        if version.is_too_new:
            print("This release is too old to use the tables; install a newer release")
        elif version.is_outdated:
            print("Upgrade the tables with: deferrable-ops inbox upgrade")
        return int(version.is_too_new or version.is_outdated)

    return asyncio.run(run())


def prune_inbox(options: argparse.Namespace) -> int:
    """Delete the waits that have ended and the events, if their retention time is over."""
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
    """Make a deployment of Airflow the owner of the inbox.

    Only the owner's processes launch and cancel external work.
    """
    from deferrable_ops.metadata_database import read_deployment

    deployment: str = options.deployment or read_deployment()
    before = with_inbox(lambda inbox: inbox.owner.adopt(deployment))
    print(f"The inbox now belongs to deployment {deployment}")
    if before is not None and before.deployment != deployment:
        print(
            f"The owner before was deployment {before.deployment}, since {time_text(before.adopted_at)}. The tasks of "
            "this previous owner keep waiting, but no longer launch or cancel external work"
        )
    return 0


def show_statistics(options: argparse.Namespace) -> int:
    """Print the numbers of rows in the inbox, the size of the inbox, and the hosts that use the inbox."""
    from dataclasses import asdict

    from deferrable_ops.inbox.statistics import read_statistics

    async def read(inbox: Inbox) -> tuple[Any, list[Any]]:
        return await read_statistics(inbox.database), await inbox.hosts.all()

    statistics, hosts = with_inbox(read, retry_timeout=_LONG_TIMEOUT)
    shown = asdict(statistics) | {"oldest_waiting": time_text(statistics.oldest_waiting)}
    using = [
        {
            "host": host.machine.name,
            "component": host.component,
            "release": host.release,
            "since": time_text(host.since),
            "seen_at": time_text(host.seen_at),
        }
        for host in hosts
    ]
    if options.json:
        print(json.dumps(shown | {"hosts": using}, indent=2))
        return 0
    for name, value in shown.items():
        text = ", ".join(f"{n} {state}" for state, n in value.items()) if name == "waits" else value
        print(f"{name.replace('_', ' ')}: {'-' if text in (None, '') else text}")
    print()
    columns = ("HOST", "COMPONENT", "RELEASE", "SINCE", "SEEN AT")
    print_table([columns, *(tuple(str(value) for value in host.values()) for host in using)])
    return 0


def export_inbox(options: argparse.Namespace) -> int:
    """Write all waits, events, channels and keys to a new file, which only the user who runs the command can read."""
    from deferrable_ops.exceptions import InputError
    from deferrable_ops.inbox.transfer import Transfer

    try:
        # The file contains the keys that sign tokens.
        descriptor = os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise InputError(
            f"cannot create the file {options.file}: {error.strerror}; give the path of a new file"
        ) from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        written = with_inbox(
            lambda inbox: Transfer(inbox.database).write_to(file), retry_timeout=_LONG_TIMEOUT
        )
    print(f"Exported {_in_words(written)} to {options.file}")
    print(
        "The file contains the keys that sign callback tokens; keep the file secret, and delete it after the import"
    )
    return 0


def import_inbox(options: argparse.Namespace) -> int:
    """Fill an empty inbox with the rows of a file that ``inbox export`` has written."""
    from deferrable_ops.exceptions import InputError
    from deferrable_ops.inbox.transfer import Transfer

    try:
        file = Path(options.file).open(encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"cannot read the file {options.file}: {error.strerror}; give a file of `inbox export`"
        ) from None
    with file:
        added = with_inbox(
            lambda inbox: Transfer(inbox.database).read_from(file), retry_timeout=_LONG_TIMEOUT
        )
    print(f"Imported {_in_words(added)}")
    return 0


def rotate_fernet_key(_options: argparse.Namespace) -> int:
    """Encrypt the secrets in the inbox with the first key of ``[core] fernet_key``."""
    from deferrable_ops.inbox.reencryption import rotate_fernet

    done = with_inbox(lambda inbox: rotate_fernet(inbox.database), retry_timeout=_LONG_TIMEOUT)
    print(
        f"Encrypted {done.triggers} stored triggers and {done.secrets} secrets of channels with the first key of "
        "[core] fernet_key"
    )
    if done.unreadable:
        print(
            f"{done.unreadable} values were encrypted with a key that is not in [core] fernet_key; add that key at the "
            "end of [core] fernet_key, separated by a comma, and run the command again",
            file=sys.stderr,
        )
    return int(done.unreadable > 0)


def _in_words(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if name != "event_counter")


def rotate_keys(options: argparse.Namespace) -> int:
    """Create a new key, which signs the callback tokens of new waits."""
    made = with_inbox(lambda inbox: inbox.keys.rotate(revoke_old=options.revoke_old))
    print(f"The callback tokens of new waits are signed with key {made}")
    if options.revoke_old:
        print(
            "Within 5 s, the endpoint starts to refuse the tokens that older keys signed; clear the tasks that "
            "still wait with such a token"
        )
    return 0


def add_commands(commands: Any) -> None:
    """Add the commands ``inbox`` and ``keys``, with their subcommands, to the argument parser of ``deferrable-ops``."""
    inbox = add_command(commands, "inbox", "manage the inbox's database").add_subparsers(required=True)
    upgrade = add_command(inbox, "upgrade", "create or upgrade the tables", upgrade_inbox)
    upgrade.add_argument(
        "--check",
        action="store_true",
        help="do not change the tables; the exit code is 1 if this release cannot use the tables or must upgrade them",
    )
    prune = add_command(inbox, "prune", "delete old waits and events", prune_inbox)
    prune.add_argument(
        "--days",
        type=positive(float),
        help="for how many days settled waits are kept; default: [deferrable_ops] wait_retention_days",
    )
    adopt = add_command(
        inbox,
        "adopt",
        "make a deployment of Airflow the owner of the inbox; only the owner launches and cancels external work",
        adopt_inbox,
    )
    adopt.add_argument(
        "deployment",
        nargs="?",
        metavar="DEPLOYMENT",
        help="id of the deployment, as the logs show it; default: the deployment of this Airflow",
    )
    stats = add_command(
        inbox, "stats", "show how many rows the inbox has, its size, and its hosts", show_statistics
    )
    stats.add_argument("--json", action="store_true", help="print a JSON object")
    exported = add_command(
        inbox, "export", "write the inbox to a file, to move the inbox to another database", export_inbox
    )
    exported.add_argument("file", metavar="FILE", help="path of a new file, which will contain secrets")
    imported = add_command(
        inbox, "import", "fill an empty inbox with the rows of a file that `export` wrote", import_inbox
    )
    imported.add_argument("file", metavar="FILE")
    add_command(
        inbox,
        "rotate-fernet",
        "encrypt the inbox's secrets with the first key of [core] fernet_key",
        rotate_fernet_key,
    )
    keys = add_command(commands, "keys", "manage the keys that sign callback tokens").add_subparsers(
        required=True
    )
    rotate = add_command(
        keys, "rotate", "create a key, which signs the callback tokens of new waits", rotate_keys
    )
    rotate.add_argument(
        "--revoke-old", action="store_true", help="refuse the callback tokens that older keys signed"
    )
