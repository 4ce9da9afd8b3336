"""The inbox that the tests of the command share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from sqlalchemy import select, update

from deferrable_ops.inbox import Attempt, Inbox, NewWait, Wait
from deferrable_ops.inbox.database.database import Transaction
from deferrable_ops.inbox.database.schema import callbacks, waits
from deferrable_ops.inbox.hosts import Component, Hosts, Machine
from deferrable_ops.inbox.outages import OutageRows
from deferrable_ops.inbox.owner import OwnerRow
from deferrable_ops.outages import Outages


class CommandInbox:
    """The inbox of the command, read and filled by the test."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite+aiosqlite:///{path}"

    def register(self, task_id: str = "train", **options: Any) -> Wait:
        attempt = Attempt(
            str(uuid5(NAMESPACE_OID, task_id)), 1, options.pop("dag_id", "sales"), "manual", task_id
        )
        options.setdefault("timeout", 3600.0)
        return self._run(lambda inbox: inbox.waits.register(NewWait(attempt, "webhook", **options)))

    def get(self, wait: Wait) -> Wait:
        return self._run(lambda inbox: inbox.waits.get(wait.id))

    def audit(self) -> list[Any]:
        async def read(inbox: Inbox) -> list[Any]:
            return await inbox.database.read(_all_callbacks)

        return self._run(read)

    def age(self, wait: Wait, seconds: float) -> None:
        """Let a wait have ended earlier."""

        async def write(transaction: Transaction) -> None:
            chosen = update(waits).where(waits.c.id == wait.id)
            await transaction.connection.execute(chosen.values(settled_at=waits.c.settled_at - seconds))

        self._run(lambda inbox: inbox.database.write(write))

    def announce(self, machine: Machine, component: Component = Component.API_SERVER) -> None:
        async def announce(inbox: Inbox) -> None:
            hosts = Hosts(inbox.database, machine)
            task = asyncio.create_task(hosts.announce(component))
            while machine not in [host.machine for host in await hosts.all()]:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._run(announce)

    def owner(self) -> OwnerRow | None:
        return self._run(lambda inbox: inbox.owner.current())

    def report_outage(self, source: str, error: str) -> None:
        now = [0.0]
        outages = Outages(lambda: now[0])
        outages.failed(source, error)
        now[0] = 60.0
        self._run(lambda inbox: OutageRows(inbox.database, outages).store())

    def _run(self, work: Any) -> Any:
        async def run() -> Any:
            inbox = await Inbox.open(self.url, retry_timeout=5)
            try:
                return await work(inbox)
            finally:
                await inbox.close()

        return asyncio.run(run())


async def _all_callbacks(connection: Any) -> list[Any]:
    return list(await connection.execute(select(callbacks).order_by(callbacks.c.number)))
