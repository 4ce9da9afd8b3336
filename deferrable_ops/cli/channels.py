"""The command ``deferrable-ops channels``: manages channels, the URLs to which outside systems post events.

A secret that the command generates is printed only once. A secret that a vendor issued is read from standard input or
from a prompt. No argument contains a secret, because every user of the machine can see the arguments of a running
command.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.cli.common import add_command, print_table, time_text, with_inbox

if TYPE_CHECKING:
    from deferrable_ops.inbox.events.channels import Channel

_ISSUED_BY_VENDOR: Final = frozenset({"slack", "stripe"})
_SCHEMES: Final = ("standard-webhooks", "github", "stripe", "slack", "bearer", "none")
_COLUMNS: Final = ("CHANNEL", "VERIFY", "SINCE", "ROTATED", "OLD SECRET UNTIL", "URL")


def add_channel(options: argparse.Namespace) -> int:
    """Add a channel, and print its URL and its generated secret."""
    from deferrable_ops.endpoint.paths import is_channel_name
    from deferrable_ops.exceptions import InputError

    name, scheme = options.name, options.verify
    if not is_channel_name(name):
        raise InputError(
            f"{name!r} is not a channel name; give 1 to 128 letters, digits, '.', '_' and '-', starting with a "
            "letter or digit"
        )
    if scheme == "none" and not options.allow_unauthenticated:
        raise InputError(
            "with --verify none, anyone who can reach the endpoint can end waiting tasks; "
            "add --allow-unauthenticated to confirm this"
        )
    if scheme != "none" and options.allow_unauthenticated:
        raise InputError(
            "--allow-unauthenticated is allowed only with --verify none; remove the option, or give --verify none"
        )
    if scheme == "none" and options.own_secret:
        raise InputError(
            "--own-secret is not allowed with --verify none, because such a channel has no secret; remove --own-secret"
        )
    secret, is_new = (None, False) if scheme == "none" else _secret(scheme, options.own_secret)
    with_inbox(lambda inbox: inbox.channels.add(name, scheme, secret))
    print(f"The channel {name} accepts events at {_url(name)}")
    _print_secret(secret if is_new else None)
    return 0


def list_channels(options: argparse.Namespace) -> int:
    """Print the channels without their secrets."""
    found: list[Channel] = with_inbox(lambda inbox: inbox.channels.all())
    if options.json:
        print(json.dumps([_as_json(channel) for channel in found], indent=2))
    else:
        rows = [_as_json(channel) for channel in found]
        print_table([_COLUMNS, *(tuple(str(value or "") for value in row.values()) for row in rows)])
    return 0


def rotate_channel(options: argparse.Namespace) -> int:
    """Give a channel a new secret; the old secret stays valid for ``--old-valid-for`` hours."""
    from deferrable_ops.exceptions import InputError

    scheme = with_inbox(lambda inbox: inbox.channels.scheme_of(options.name))
    if scheme == "none":
        raise InputError(
            f"the channel {options.name} has no secret to rotate, because it accepts unauthenticated requests; to "
            "verify requests, remove the channel, and add it again with another --verify"
        )
    secret, is_new = _secret(scheme, options.own_secret)
    old_for = options.old_valid_for * 3600
    with_inbox(lambda inbox: inbox.channels.rotate(options.name, secret, old_for=old_for))
    if old_for:
        print(f"The old secret of {options.name} is valid for another {options.old_valid_for:g} hours")
    else:
        print(f"The endpoint stops accepting the old secret of {options.name} within 5 s")
    _print_secret(secret if is_new else None)
    return 0


def remove_channel(options: argparse.Namespace) -> int:
    """Remove a channel.

    At most 5 s later, requests to the removed channel are rejected. The events of the channel are kept.
    """
    with_inbox(lambda inbox: inbox.channels.remove(options.name))
    print(f"The channel {options.name} is removed")
    return 0


def add_commands(commands: Any) -> None:
    """Add ``channels`` and its commands to the parser."""
    channels = add_command(commands, "channels", "manage the addresses to which outside systems post events")
    subcommands = channels.add_subparsers(required=True, metavar="COMMAND")
    added = add_command(subcommands, "add", "add a channel", add_channel)
    added.add_argument(
        "name",
        metavar="NAME",
        help="name of the channel, as it appears in the URL: letters, digits, '.', '_' and '-'",
    )
    added.add_argument("--verify", required=True, choices=_SCHEMES, help="how requests are verified")
    added.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        help="confirm that with --verify none, anyone may post events",
    )
    listed = add_command(subcommands, "list", "list channels", list_channels)
    listed.add_argument("--json", action="store_true", help="print a JSON array")
    rotated = add_command(subcommands, "rotate", "give a channel a new secret", rotate_channel)
    rotated.add_argument("name", metavar="NAME")
    rotated.add_argument(
        "--old-valid-for",
        type=_hours,
        default=24.0,
        metavar="HOURS",
        help="for how many hours the old secret stays valid; give 0 if the old secret was leaked; default: %(default)g",
    )
    for command in (added, rotated):
        command.add_argument(
            "--own-secret",
            action="store_true",
            help="read the secret from standard input or a prompt; slack and stripe do not need this option",
        )
    removed = add_command(subcommands, "remove", "remove a channel", remove_channel)
    removed.add_argument("name", metavar="NAME")


def _secret(scheme: str, own: bool) -> tuple[str, bool]:
    """Return the secret of a channel, and True if this command generated the secret."""
    from deferrable_ops.events.signatures import check_secret, new_secret

    if not own and scheme not in _ISSUED_BY_VENDOR:
        return new_secret(scheme, os.urandom(32)), True
    given = getpass.getpass("secret: ") if sys.stdin.isatty() else sys.stdin.readline()
    secret = given.rstrip("\r\n")
    check_secret(scheme, secret)
    return secret, False


def _print_secret(secret: str | None) -> None:
    if secret is not None:
        print(f"Copy the channel's secret now, because it is not shown again: {secret}")


def _url(name: str) -> str:
    from deferrable_ops import settings

    endpoint = settings.endpoint_url() or "{endpoint}"
    return f"{endpoint}/channels/{name}"


def _as_json(channel: Channel) -> dict[str, Any]:
    return {
        "channel": channel.name,
        "verify": channel.scheme,
        "since": time_text(channel.created_at),
        "rotated": time_text(channel.rotated_at),
        "old_secret_until": time_text(channel.old_secret_until),
        "url": _url(channel.name),
    }


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of hours, 0 or more")
    return hours
