"""``deferrable-ops waits`` lists rows of the inbox table `waits`; ``deferrable-ops send`` records a callback.

Each row of the table `waits` is the wait of one task.
"""

from __future__ import annotations

import argparse
import getpass
import json
import re
import sys
import time
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from deferrable_ops.cli.common import add_command, positive, print_table, time_text, with_inbox

# Importing Airflow takes seconds, so each command imports what it needs when it runs.
if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from deferrable_ops.inbox import Inbox, Wait
    from deferrable_ops.inbox.outages import StoredOutage

_STATES: Final = ("waiting", "success", "failed", "skipped", "expired", "superseded", "killed")
_COLUMNS: Final = ("WAIT", "TASK", "STATE", "SINCE", "DEADLINE", "LAUNCHED", "PROGRESS", "OUTAGE")
_MAX_PROGRESS_WIDTH: Final = 60
_IDS_PER_QUERY: Final = 500
_SPAN = re.compile(r"(\d{1,6})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def show_waits(options: argparse.Namespace) -> int:
    """Print the waits that the command's options select, the newest first.

    With ``--count``, print only the number of these waits.
    """

    async def read(inbox: Inbox) -> tuple[int, list[Wait], dict[str, list[StoredOutage]]]:
        number, found = await _find(inbox, options)
        waiting = [wait.id for wait in found if wait.settled_at is None]
        return number, found, await inbox.outages.of_waits(waiting)

    number, found, outages = with_inbox(read)
    if options.count:
        print(number)
    elif options.json:
        print(json.dumps([_as_json(wait, outages.get(wait.id, [])) for wait in found], indent=2))
    else:
        print_table([_COLUMNS, *(_as_row(wait, outages.get(wait.id, [])) for wait in found)])
    if len(found) < number and not options.count:
        print(
            f"Showing the newest {len(found)} of {number} waits; raise --limit to see more", file=sys.stderr
        )
    return 0


async def _find(inbox: Inbox, options: argparse.Namespace) -> tuple[int, list[Wait]]:
    """Return how many waits the command's options select, and the newest of these waits, at most ``--limit``."""
    from deferrable_ops.inbox.database.schema import waits

    conditions = [
        waits.c[column] == value
        for column, value in (
            ("dag_id", options.dag),
            ("task_id", options.task),
            ("run_id", options.run_id),
        )
        if value is not None
    ]
    if options.since is not None:
        conditions.append(waits.c.created_at >= options.since)
    if options.answered:
        found = await _read_metadata("--answered", _answered(inbox, *conditions))
    elif options.orphaned:
        found = await _read_metadata("--orphaned", _orphaned(inbox, *conditions))
    else:
        if options.state != "all":
            conditions.append(waits.c.state == options.state)
        number = await inbox.waits.count(*conditions)
        if options.count:
            return number, []
        return number, await inbox.waits.find(*conditions, limit=options.limit, newest_first=True)
    return len(found), sorted(found, key=lambda wait: -wait.created_at)[: options.limit]


async def _answered(inbox: Inbox, *conditions: ColumnElement[bool]) -> list[Wait]:
    from deferrable_ops.triggers.lifecycle import unended

    return await unended.find_unended(inbox, unended.attempts_from_database, 0.0, conditions=conditions)


async def _orphaned(inbox: Inbox, *conditions: ColumnElement[bool]) -> list[Wait]:
    """Return the waits without an outcome that meet the conditions and have no task instance in Airflow's database."""
    from deferrable_ops.inbox.database.schema import waits
    from deferrable_ops.metadata_database import find_orphaned

    orphaned = [attempt.wait_id for attempt in find_orphaned(await inbox.waits.waiting())]
    found: list[Wait] = []
    for start in range(0, len(orphaned), _IDS_PER_QUERY):
        chosen = waits.c.id.in_(orphaned[start : start + _IDS_PER_QUERY])
        found += await inbox.waits.find(chosen, *conditions)
    return found


async def _read_metadata(option: str, reading: Coroutine[Any, Any, list[Wait]]) -> list[Wait]:
    from sqlalchemy.exc import SQLAlchemyError

    from deferrable_ops.exceptions import ConfigurationError

    try:
        return await reading
    except SQLAlchemyError as error:
        raise ConfigurationError(
            f"{option} cannot read Airflow's metadata database ({type(error).__name__}); run the command on a "
            "machine on which [database] sql_alchemy_conn is set"
        ) from None


def send(options: argparse.Namespace) -> int:
    """Record in the inbox the callback that the user gives on the command line, and print the callback's receipt."""
    from deferrable_ops.exceptions import InputError
    from deferrable_ops.inbox.waits.callbacks import Callback, Verb

    verb = Verb(options.verb)
    body = _body(verb, options.json, options.reason)
    if not options.reason.strip():
        raise InputError("--reason is empty; give a reason, which the inbox stores for auditing")
    callback = Callback(
        options.wait,
        verb,
        body.encode(),
        json.loads(body),
        source=f"cli:{getpass.getuser()}: {options.reason}",
        # The key makes the inbox keep a row for a heartbeat, too.
        idempotency_key=f"cli-{uuid4()}",
    )
    receipt = with_inbox(lambda inbox: inbox.callbacks.record(callback))
    print(receipt.body)
    return 0 if receipt.status < 300 else 1


def add_commands(commands: Any) -> None:
    """Add ``waits`` and ``send`` to the parser."""
    listed = add_command(commands, "waits", "list tasks that wait", show_waits)
    chosen = listed.add_mutually_exclusive_group()
    chosen.add_argument("--state", choices=(*_STATES, "all"), default="waiting", help="default: %(default)s")
    chosen.add_argument(
        "--answered",
        action="store_true",
        help="list waits that have an outcome, but whose task has not ended in Airflow's metadata database",
    )
    chosen.add_argument(
        "--orphaned",
        action="store_true",
        help="list waits whose task instance is not in Airflow's metadata database, because the task instance was "
        "deleted or belongs to another Airflow; these waits end at their deadline",
    )
    listed.add_argument("--dag", metavar="DAG_ID")
    listed.add_argument("--task", metavar="TASK_ID")
    listed.add_argument("--run-id", metavar="RUN_ID")
    listed.add_argument(
        "--since",
        type=_since,
        metavar="TIME",
        help="list only waits registered since this ISO 8601 time, or in the last 30m, 2h or 7d",
    )
    listed.add_argument("--limit", type=positive(int), default=100, help="default: %(default)s")
    listed.add_argument(
        "--count", action="store_true", help="print only the number of waits; --limit has no effect"
    )
    listed.add_argument("--json", action="store_true", help="print a JSON array")
    sent = add_command(
        commands, "send", "send a callback to a wait by hand; the inbox keeps a row for auditing", send
    )
    sent.add_argument("verb", choices=("success", "failure", "skip", "heartbeat"))
    sent.add_argument("wait", type=_wait_id, metavar="WAIT", help="id of the wait, as `waits` shows it")
    sent.add_argument(
        "--json",
        metavar="TEXT",
        help="body of the callback, as JSON; default: null for success, otherwise an object",
    )
    sent.add_argument(
        "--reason", required=True, help="why you send the callback; the inbox stores the reason for auditing"
    )


def _since(text: str) -> float:
    """Convert an ISO 8601 time, or a time span before now such as ``2h``, to seconds since the epoch.

    An ISO 8601 time without an offset is in UTC.
    """
    span = _SPAN.fullmatch(text)
    if span is not None:
        return time.time() - float(span[1]) * _SECONDS[span[2]]
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write 30m, 2h, 7d or 2026-01-31T12:00:00Z"
        ) from None


def _wait_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            "a wait's id must be a UUID; `deferrable-ops waits` shows the ids"
        ) from None


def _body(verb: str, given: str | None, reason: str) -> str:
    """Return the body of a callback. Add `reason` to the body of a failure or skip callback that contains no reason."""
    from deferrable_ops.endpoint.body import parse_json
    from deferrable_ops.endpoint.callbacks import check_body
    from deferrable_ops.endpoint.responses import RequestRejected
    from deferrable_ops.exceptions import InputError
    from deferrable_ops.inbox.waits.callbacks import Verb

    body = given if given is not None else "null" if verb == Verb.SUCCESS else "{}"
    try:
        payload = parse_json(body.encode(errors="surrogateescape"))
    except RequestRejected as rejected:
        raise InputError(f"--json: {rejected}") from None
    if verb in (Verb.FAILURE, Verb.SKIP) and isinstance(payload, dict) and "reason" not in payload:
        payload["reason"] = reason
        body = json.dumps(payload)
    check_body(Verb(verb), payload)
    return body


def _as_json(wait: Wait, outages: Iterable[StoredOutage]) -> dict[str, Any]:
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
        "outages": [
            {
                "source": one.source,
                "host": one.host,
                "since": time_text(one.since),
                "seen_at": time_text(one.seen_at),
                "error": one.error,
            }
            for one in outages
        ],
    }


def _as_row(wait: Wait, outages: Iterable[StoredOutage]) -> tuple[str, ...]:
    attempt = wait.attempt
    mapped = "" if attempt.map_index < 0 else f"[{attempt.map_index}]"
    task = f"{attempt.dag_id}.{attempt.task_id}{mapped} {attempt.run_id} try {attempt.try_number}"
    progress = "" if wait.progress is None else json.dumps(wait.progress, ensure_ascii=False)
    if len(progress) > _MAX_PROGRESS_WIDTH:
        progress = progress[: _MAX_PROGRESS_WIDTH - 3] + "..."
    outage = "; ".join(f"{one.source} since {time_text(one.since)}: {one.error}" for one in outages)
    times = (time_text(wait.created_at), time_text(wait.deadline), time_text(wait.launched_at) or "")
    return (wait.id, task, wait.state, *(str(time) for time in times), progress, outage)
