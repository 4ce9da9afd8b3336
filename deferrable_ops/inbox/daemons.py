"""The table of the supervisord processes (daemons) and of the hosts on which they run.

A row contains the host of a supervisord, the boot id of the host, the DAG run that last used the supervisord, and what
a triggerer needs to stop the supervisord.

A local supervisord is only reachable from its own host. Without this table, a triggerer on another host would not find
a running supervisord and would start a second one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import daemons


@dataclass(frozen=True, slots=True)
class DaemonLocation:
    """The host of a supervisord.

    :param name: the ``working_dir`` of the supervisord; for a supervisord over SSH, ``connection:working_dir``.
    :param boot_id: the boot id of the host, which changes when the host restarts, or "" if the host has no boot id.
    :param dag_id: the DAG id of the DAG run that last configured or started the supervisord.
    :param run_id: the run id of the DAG run that last configured or started the supervisord.
    :param since: the time when the supervisord was first recorded after the last boot of its host, in seconds since the
        epoch.
    :param details: what a triggerer needs to stop the supervisord: ``configuration`` (as triggers store it),
        ``is_remote``, ``stop_on_exit``, ``programs`` (their names) and ``team``. Empty if an older release recorded the
        supervisord.
    """

    name: str
    host: str
    boot_id: str
    dag_id: str
    run_id: str
    since: float
    details: Mapping[str, Any]

    def is_used_by(self, dag_id: str, run_id: str) -> bool:
        """Return whether this DAG run was the last one that configured or started the supervisord."""
        return (self.dag_id, self.run_id) == (dag_id, run_id)


class Daemons:
    """The recorded hosts of supervisords, for all triggerers that share this inbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self,
        name: str,
        host: str,
        boot_id: str,
        *,
        dag_id: str,
        run_id: str,
        allow_move: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> DaemonLocation | None:
        """Record that a supervisord runs on a host, and return the previous record, or None if there was no record.

        A record that names another host is replaced only if `allow_move` is true.

        :param allow_move: if True, replace the record even if the record names another host. Set `allow_move` only for
            a supervisord that is managed over SSH.
        :param details: the field of the same name in :class:`DaemonLocation`.
        """

        async def write(transaction: Transaction) -> DaemonLocation | None:
            mine: dict[str, Any] = {"host": host, "boot_id": boot_id, "dag_id": dag_id, "run_id": run_id}
            mine["details"] = None if details is None else json.dumps(details)
            new = self._database.insert(daemons).values(name=name, since=transaction.now, **mine)
            if (await transaction.connection.execute(new.on_conflict_do_nothing())).rowcount == 1:
                return None
            chosen = select(daemons).where(daemons.c.name == name).with_for_update()
            before = _daemon((await transaction.connection.execute(chosen)).one())
            if before.host == host or allow_move:
                stayed = (before.host, before.boot_id) == (host, boot_id)
                mine |= {} if stayed else {"since": transaction.now}
                await transaction.connection.execute(
                    update(daemons).where(daemons.c.name == name).values(**mine)
                )
            return before

        return await self._database.write(write)

    async def find(self, name: str) -> DaemonLocation | None:
        """Return the recorded host of a supervisord, or None if no host is recorded."""
        return next((daemon for daemon in await self.all() if daemon.name == name), None)

    async def all(self) -> list[DaemonLocation]:
        """Return the records of all supervisords, ordered by name."""

        async def read(connection: AsyncConnection) -> list[DaemonLocation]:
            return [
                _daemon(row) for row in await connection.execute(select(daemons).order_by(daemons.c.name))
            ]

        return await self._database.read(read)

    async def release(self, name: str, host: str) -> None:
        """Delete the record of a supervisord, if the record names the given host."""

        async def write(transaction: Transaction) -> None:
            mine = delete(daemons).where(daemons.c.name == name, daemons.c.host == host)
            await transaction.connection.execute(mine)

        await self._database.write(write)

    async def forget(self, name: str) -> DaemonLocation | None:
        """Delete the record of a supervisord whose host no longer exists, and return the deleted record.

        Return None if there is no record.
        """

        async def write(transaction: Transaction) -> DaemonLocation | None:
            chosen = delete(daemons).where(daemons.c.name == name).returning(daemons)
            row = (await transaction.connection.execute(chosen)).first()
            return None if row is None else _daemon(row)

        return await self._database.write(write)


def _daemon(row: Row[Any]) -> DaemonLocation:
    details = {} if row.details is None else json.loads(row.details)
    return DaemonLocation(row.name, row.host, row.boot_id, row.dag_id, row.run_id, row.since, details)
