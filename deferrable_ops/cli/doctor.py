"""``deferrable-ops doctor`` looks for problems that keep tasks waiting, and prints how a user fixes each problem."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.cli.common import add_command, time_text, with_inbox

# Importing Airflow takes seconds, so each command imports what it needs when it runs.
if TYPE_CHECKING:
    from deferrable_ops.inbox import Inbox

# A triggerer updates its row once a minute.
_SEEN_WITHIN: Final = 180.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem that keeps tasks waiting.

    :param check: the name of the doctor's check that found the problem.
    :param problem: what is wrong, with numbers.
    :param fix: what a user does to correct the problem.
    """

    check: str
    problem: str
    fix: str


def examine(options: argparse.Namespace) -> int:
    """Look for problems, and print each problem with its fix. Return the exit code 1 if there is a problem."""
    findings: list[Finding] = with_inbox(_findings)
    if options.json:
        print(json.dumps([asdict(one) for one in findings], indent=2))
    else:
        for one in findings:
            print(f"{one.check}: {one.problem}\n    Fix: {one.fix}")
        print(f"{len(findings)} problems found" if findings else "No problems found")
    return int(bool(findings))


async def _findings(inbox: Inbox) -> list[Finding]:
    checks = (_owner, _sqlite, _triggerers, _unended, _orphaned, _outages)
    return [finding for check in checks async for finding in check(inbox)]


async def _owner(inbox: Inbox) -> AsyncIterator[Finding]:
    from deferrable_ops.metadata_database import read_deployment

    owner, mine = await inbox.owner.current(), read_deployment()
    if owner is not None and owner.deployment != mine:
        yield Finding(
            "owner",
            f"the inbox belongs to another Airflow (deployment {owner.deployment}), so this Airflow (deployment "
            f"{mine}) launches and cancels no external work",
            "set another [deferrable_ops] inbox_url; if this Airflow replaces the other Airflow, run: "
            f"deferrable-ops inbox adopt {mine}",
        )


async def _sqlite(inbox: Inbox) -> AsyncIterator[Finding]:
    if (found := await inbox.hosts.current_problem()) is not None:
        problem, fix = found.rsplit("; ", 1)
        yield Finding("hosts", problem, fix)


async def _triggerers(inbox: Inbox) -> AsyncIterator[Finding]:
    from deferrable_ops.inbox.database.schema import waits
    from deferrable_ops.inbox.hosts import Component

    seen = [host.seen_at for host in await inbox.hosts.all() if host.component == Component.TRIGGERER]
    waiting = await inbox.waits.count(waits.c.state == "waiting")
    if waiting and time.time() - max(seen, default=0.0) > _SEEN_WITHIN:
        when = f"the last one at {time_text(max(seen))}" if seen else "none in the last week"
        yield Finding(
            "triggerers",
            f"{waiting} tasks wait, but no triggerer has used the inbox in the last {_SEEN_WITHIN:.0f} s ({when})",
            "start `airflow triggerer`, with the same [deferrable_ops] inbox_url as here",
        )


async def _unended(inbox: Inbox) -> AsyncIterator[Finding]:
    from deferrable_ops.triggers.lifecycle import unended

    found = await unended.find_unended(inbox, unended.attempts_from_database)
    if found:
        yield Finding(
            "unended",
            f"{len(found)} tasks have had an outcome for more than {unended.ANSWERED_FOR:.0f} s, but have not ended in "
            f"Airflow, the oldest since {time_text(found[0].settled_at)} (wait {found[0].id})",
            "check that the triggerers run and are not overloaded; to list the tasks, run: "
            "deferrable-ops waits --answered",
        )


async def _orphaned(inbox: Inbox) -> AsyncIterator[Finding]:
    from deferrable_ops.metadata_database import find_orphaned

    if number := len(find_orphaned(await inbox.waits.waiting())):
        yield Finding(
            "orphaned",
            f"{number} waits have no task instance in Airflow's database, so these waits end only at their "
            "deadline",
            "list them with `deferrable-ops waits --orphaned`, and end each with `deferrable-ops send skip WAIT`",
        )


async def _outages(inbox: Inbox) -> AsyncIterator[Finding]:
    for one in await inbox.outages.all():
        yield Finding(
            "outage",
            f"{one.host} has not reached {one.source} since {time_text(one.since)}: {one.error}",
            f"correct the connection to {one.source}; the tasks then continue without further action",
        )


def add_commands(commands: Any) -> None:
    """Add the command ``doctor`` to the argument parser of ``deferrable-ops``."""
    doctor = add_command(
        commands,
        "doctor",
        "find problems that keep tasks waiting; the exit code is 1 if there are any",
        examine,
    )
    doctor.add_argument("--json", action="store_true", help="print a JSON list")
