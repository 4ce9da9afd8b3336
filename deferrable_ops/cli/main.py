"""The command ``deferrable-ops``: serve the endpoint, see what waits, answer by hand, look after inbox and channels.

Exit codes: 0 done, 1 refused or the inbox does not answer, 2 bad input.
"""

from __future__ import annotations

import argparse
import getpass
import json
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from deferrable_ops.cli import channels as cli_channels
from deferrable_ops.cli import supervisord
from deferrable_ops.cli.common import add_command, positive, print_table, time_text, with_inbox

if TYPE_CHECKING:  # each command imports what it needs: Airflow alone takes seconds
    from deferrable_ops.inbox import Inbox, Wait

_STATES: Final = ("waiting", "success", "failed", "skipped", "expired", "superseded", "killed")
_COLUMNS: Final = ("WAIT", "TASK", "STATE", "SINCE", "DEADLINE", "LAUNCHED", "PROGRESS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # Airflow would print its remarks among our output
    from deferrable_ops.exceptions import ConfigurationError, DeferrableOpsError, InputError

    try:
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
    from deferrable_ops.endpoint.serving import inbox_without_secrets, serve_until_interrupted

    print(f"The inbox is {inbox_without_secrets()}.", flush=True)
    serve_until_interrupted(
        host=options.host,
        port=options.port,
        workers=options.workers,
        trusted_proxies=options.trusted_proxies,
        certificate=options.certificate,
        private_key=options.private_key,
    )
    return 0


def show_waits(options: argparse.Namespace) -> int:
    """Print the waits that the options choose, the newest last."""
    from deferrable_ops.inbox.database.schema import waits

    chosen = [] if options.state == "all" else [waits.c.state == options.state]
    chosen += [
        waits.c[column] == value
        for column, value in (
            ("dag_id", options.dag),
            ("task_id", options.task),
            ("run_id", options.run_id),
        )
        if value is not None
    ]
    found = with_inbox(lambda inbox: inbox.waits.find(*chosen, limit=options.limit + 1))
    shown = sorted(found[: options.limit], key=lambda wait: wait.created_at)
    if options.json:
        print(json.dumps([_as_json(wait) for wait in shown], indent=2))
    else:
        print_table([_COLUMNS, *map(_as_row, shown)])
    if len(found) > options.limit:
        print(f"only {options.limit} of them are shown; --limit shows more", file=sys.stderr)
    return 0


def send(options: argparse.Namespace) -> int:
    """Send a callback as an operator of this Airflow, and print its receipt."""
    from deferrable_ops.exceptions import InputError
    from deferrable_ops.inbox.waits.callbacks import Callback, Verb

    verb = Verb(options.verb)
    body = _body(verb, options.json, options.reason)
    if not options.reason.strip():
        raise InputError("--reason is empty; say why, for whoever reads the audit later")
    callback = Callback(
        options.wait,
        verb,
        body.encode(),
        json.loads(body),
        source=f"cli:{getpass.getuser()}: {options.reason}",
        idempotency_key=f"cli-{uuid4()}",  # so that a heartbeat is recorded too
    )
    receipt = with_inbox(lambda inbox: inbox.callbacks.record(callback))
    print(receipt.body)
    return 0 if receipt.status < 300 else 1


def upgrade_inbox(_options: argparse.Namespace) -> int:
    """Bring the inbox's tables to the newest schema."""
    from deferrable_ops.inbox.database.schema import HEAD

    with_inbox(_opened)
    print(f"the inbox is at schema {HEAD}")
    return 0


def prune_inbox(options: argparse.Namespace) -> int:
    """Delete the waits that were settled long ago, and the events that came long ago."""
    from deferrable_ops import settings

    days = settings.wait_retention_days() if options.days is None else options.days
    event_days = settings.event_retention_days()

    async def prune(inbox: Inbox) -> tuple[int, int]:
        return await inbox.retention.prune(days), await inbox.retention.prune_events(event_days)

    waits, events = with_inbox(prune)
    print(f"{waits} waits that were settled more than {days:g} days ago are deleted")
    print(f"{events} events that came more than {event_days} days ago are deleted")
    return 0


def rotate_keys(options: argparse.Namespace) -> int:
    """Make a new signing key for the waits to come."""
    made = with_inbox(lambda inbox: inbox.keys.rotate(revoke_old=options.revoke_old))
    print(f"new waits are signed with key {made}")
    if options.revoke_old:
        print("tokens of every older key are refused within 5 s: clear the tasks that still wait for them")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("deferrable-ops", description="Tasks that wait in the Triggerer.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_waits(commands)
    _add_send(commands)
    inbox = add_command(commands, "inbox", "look after the inbox's database").add_subparsers(required=True)
    add_command(inbox, "upgrade", "create or upgrade the tables", upgrade_inbox)
    prune = add_command(inbox, "prune", "delete waits and events of long ago", prune_inbox)
    prune.add_argument(
        "--days", type=positive(float), help="for waits; default: [deferrable_ops] wait_retention_days"
    )
    cli_channels.add_commands(commands)
    supervisord.add_commands(commands)
    keys = add_command(commands, "keys", "look after the keys that sign callback tokens").add_subparsers(
        required=True
    )
    rotate = add_command(keys, "rotate", "sign new waits with a new key", rotate_keys)
    rotate.add_argument("--revoke-old", action="store_true", help="refuse the tokens of all older keys")
    return parser


def _add_serve(commands: Any) -> None:
    command = add_command(commands, "serve", "serve the endpoint on its own", serve)
    command.add_argument("--host", default="0.0.0.0", help="default: %(default)s")  # noqa: S104 - services call from outside
    command.add_argument("--port", type=int, default=8090, help="default: %(default)s")
    command.add_argument("--workers", type=positive(int), default=1, help="processes; default: %(default)s")
    command.add_argument(
        "--trusted-proxies",
        default="127.0.0.1",
        metavar="ADDRESSES",
        help="addresses, separated by commas, whose X-Forwarded-For and -Proto are believed; default: %(default)s",
    )
    command.add_argument("--certificate", metavar="FILE", help="TLS certificate; default: plain HTTP")
    command.add_argument("--private-key", metavar="FILE", help="its private key")


def _add_waits(commands: Any) -> None:
    command = add_command(commands, "waits", "show what waits", show_waits)
    command.add_argument("--state", choices=(*_STATES, "all"), default="waiting", help="default: %(default)s")
    command.add_argument("--dag", metavar="DAG_ID")
    command.add_argument("--task", metavar="TASK_ID")
    command.add_argument("--run-id", metavar="RUN_ID")
    command.add_argument("--limit", type=positive(int), default=100, help="default: %(default)s")
    command.add_argument("--json", action="store_true", help="print a JSON array")


def _add_send(commands: Any) -> None:
    command = add_command(commands, "send", "answer a wait by hand; it leaves an audit row", send)
    command.add_argument("verb", choices=("success", "failure", "skip", "heartbeat"))
    command.add_argument("wait", type=_wait_id, metavar="WAIT", help="the wait's id, as `waits` shows it")
    command.add_argument("--json", metavar="TEXT", help="the callback's body; default: what the verb needs")
    command.add_argument("--reason", required=True, help="why, for the audit")


def _wait_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError("a wait's id is a UUID; `deferrable-ops waits` shows it") from None


def _body(verb: str, given: str | None, reason: str) -> str:
    """Return the body of a callback: what was given, with the reason where the verb has one."""
    from deferrable_ops.endpoint.answers import Refused
    from deferrable_ops.endpoint.body import parse_json
    from deferrable_ops.endpoint.verbs import check_body
    from deferrable_ops.exceptions import InputError
    from deferrable_ops.inbox.waits.callbacks import Verb

    body = given if given is not None else "null" if verb == Verb.SUCCESS else "{}"
    try:
        payload = parse_json(body.encode(errors="surrogateescape"))
    except Refused as refused:
        raise InputError(f"--json: {refused}") from None
    if verb in (Verb.FAILURE, Verb.SKIP) and isinstance(payload, dict) and "reason" not in payload:
        payload["reason"] = reason
        body = json.dumps(payload)
    check_body(Verb(verb), payload)
    return body


async def _opened(_inbox: Inbox) -> None:
    """Do nothing: opening the inbox upgrades it."""


def _as_json(wait: Wait) -> dict[str, Any]:
    attempt = wait.attempt
    return {
        "wait": wait.id,
        "dag_id": attempt.dag_id,
        "run_id": attempt.run_id,
        "task_id": attempt.task_id,
        "map_index": attempt.map_index,
        "try_number": attempt.try_number,
        "feature": wait.feature,
        "state": wait.state,
        "since": time_text(wait.created_at),
        "deadline": time_text(wait.deadline),
        "settled_at": time_text(wait.settled_at),
        "last_beat": time_text(wait.last_beat),
        "launched_at": time_text(wait.launched_at),
        "progress": wait.progress,
    }


def _as_row(wait: Wait) -> tuple[str, ...]:
    attempt = wait.attempt
    mapped = "" if attempt.map_index < 0 else f"[{attempt.map_index}]"
    task = f"{attempt.dag_id}.{attempt.task_id}{mapped} {attempt.run_id} try {attempt.try_number}"
    progress = "" if wait.progress is None else json.dumps(wait.progress, ensure_ascii=False)
    shortened = progress if len(progress) <= 60 else progress[:57] + "..."
    times = (time_text(wait.created_at), time_text(wait.deadline), time_text(wait.launched_at) or "")
    return (wait.id, task, wait.state, *(str(time) for time in times), shortened)


if __name__ == "__main__":
    sys.exit(main())
