"""The hosts that use this inbox. Each API server, triggerer and endpoint records itself in the inbox once a minute.

If the inbox is a SQLite file, only one host can use it. With several hosts, each host would have its own file, and
callbacks would arrive in a file that no triggerer reads. The recorded hosts show this mistake.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Final

from sqlalchemy import case, select
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops import settings
from deferrable_ops.deployment import this_process
from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import hosts

log = logging.getLogger(__name__)

_ANNOUNCE_INTERVAL = 60.0
_GAP = 180.0
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# Executors that run tasks on other hosts, by a part of their class name.
_REMOTE_EXECUTOR = re.compile(r"(\w*(?:Celery|Kubernetes|Edge|AwsEcs|AwsBatch|AwsLambda)\w*Executor)")
_USE_POSTGRES: Final = "set [deferrable_ops] inbox_url to the same Postgres database on all hosts"


class Component(StrEnum):
    """A kind of process that uses the inbox, such as a triggerer."""

    API_SERVER = "api-server"
    TRIGGERER = "triggerer"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, or a container on a machine.

    :param boot_id: identifies the running kernel, which all containers of a machine share; "" if the system has no such
        id.
    """

    name: str
    boot_id: str

    @classmethod
    def this(cls) -> Machine:
        """Return the machine on which this process runs."""
        boot_id = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        return cls(socket.gethostname(), boot_id)

    def is_same(self, other: Machine) -> bool:
        """Return whether `other` is this machine. A restart of a machine changes its boot id, but not its name."""
        return self.name == other.name or (self.boot_id != "" and self.boot_id == other.boot_id)


@dataclass(frozen=True, slots=True)
class Host:
    """An API server, triggerer or endpoint on one host. Times are seconds since the epoch by the database's clock.

    :param deployment: the id of the deployment of Airflow to which the component belongs, or None if the component did
        not know the id.
    :param since: the time since which the component has updated its row in the inbox without a gap.
    """

    machine: Machine
    component: str
    deployment: str | None
    release: str
    since: float
    seen_at: float


class Hosts:
    """The hosts that share this inbox.

    :param this: the machine on which this process runs; by default, the result of :meth:`Machine.this`.
    :param announce_interval: seconds between two updates of the component's row in the inbox.
    :param gap: a component that did not update its row for this many seconds is considered to have been down.
    :ivar problem: the reason why this inbox must not be a SQLite file, or None if no such reason is known.
    """

    def __init__(
        self,
        database: Database,
        this: Machine | None = None,
        *,
        announce_interval: float = _ANNOUNCE_INTERVAL,
        gap: float = _GAP,
    ) -> None:
        self._database = database
        self._this = this or Machine.this()
        self._announce_interval = announce_interval
        self._gap = gap
        self._is_file = database.dialect == "sqlite" and not database.in_memory
        self.problem = executor_problem(settings.executor()) if self._is_file else None

    async def announce(self, component: Component) -> None:
        """Record once a minute that a component runs on this host. This method runs until it is cancelled.

        If the inbox is a SQLite file although Airflow runs on several hosts, log an error.
        """
        if self.problem is not None:
            log.error("%s", self.problem)
        started_at: float | None = None
        while True:
            try:
                now = await self._database.write(lambda transaction: self._record(transaction, component))
                if self._is_file:
                    started_at = started_at or now
                    self._check(await self.all(), started_at)
            except DeferrableOpsError as error:
                log.warning("Cannot record that this host uses the inbox; retrying: %s", error)
            await asyncio.sleep(self._announce_interval)

    async def all(self) -> list[Host]:
        """Return the components that were recorded in the last week, sorted by host and component."""

        async def read(connection: AsyncConnection) -> list[Host]:
            rows = await connection.execute(select(hosts).order_by(hosts.c.host, hosts.c.component))
            return [
                Host(
                    Machine(row.host, json.loads(row.details).get("boot_id", "")),
                    row.component,
                    row.deployment,
                    row.release,
                    row.since,
                    row.seen_at,
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def airflow_is_here(self) -> bool:
        """Return whether an API server or triggerer on this machine was recorded in this inbox in the last week."""
        return any(
            host.component != Component.ENDPOINT and self._this.is_same(host.machine)
            for host in await self.all()
        )

    async def current_problem(self) -> str | None:
        """Return the reason why this inbox must not be a SQLite file, or None if a SQLite file is allowed. One such
        reason is that several hosts use the inbox now.
        """
        if self._is_file and self.problem is None:
            return self._several_hosts(await self.all(), time.time() - self._gap)
        return self.problem

    def _check(self, found: Iterable[Host], started_at: float) -> None:
        # Announcements from before the start may be those of a container that has moved to this host.
        problem = self._several_hosts(found, started_at)
        if problem is not None and problem != self.problem:
            self.problem = problem
            log.error("%s", problem)

    def _several_hosts(self, found: Iterable[Host], since: float) -> str | None:
        others = {
            host.machine.name
            for host in found
            if host.seen_at > since and not self._this.is_same(host.machine)
        }
        if not others:
            return None
        return (
            f"the inbox is a SQLite file, but it is used on {len(others) + 1} hosts "
            f"({', '.join(sorted({*others, self._this.name}))}), which loses data; {_USE_POSTGRES}"
        )

    async def _record(self, transaction: Transaction, component: Component) -> float:
        now = transaction.now
        seen = {
            "deployment": this_process.id,
            "release": version("airflow-deferrable-ops"),
            "seen_at": now,
            "details": json.dumps({"boot_id": self._this.boot_id}),
        }
        was_down = hosts.c.seen_at < now - self._gap
        await transaction.connection.execute(
            self._database.insert(hosts)
            .values(host=self._this.name, component=component.value, since=now, **seen)
            .on_conflict_do_update(
                index_elements=[hosts.c.host, hosts.c.component],
                set_={**seen, "since": case((was_down, now), else_=hosts.c.since)},
            )
        )
        return now


def executor_problem(executor: str) -> str | None:
    """Return why this ``[core] executor`` forbids a SQLite file as the inbox, or None if a SQLite file is allowed."""
    remote = _REMOTE_EXECUTOR.search(executor)
    if remote is None:
        return None
    return (
        f"the inbox is a SQLite file, but [core] executor has {remote[1]}, which runs tasks on several hosts: "
        f"callbacks would not reach tasks on other hosts; {_USE_POSTGRES}"
    )
