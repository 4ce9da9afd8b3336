"""Where supervisords live: on which host, since which of its starts, and which DAG run used it last.

A local supervisord can be reached by its own host alone. Without this, a triggerer on another host would find none, and
start a second one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.schema import daemons


@dataclass(frozen=True, slots=True)
class DaemonLocation:
    """Where a supervisord lives.

    :param name: ``/its/working_dir``, or ``connection:/its/working_dir`` of one behind SSH.
    :param boot_id: of the start of the host since which it may run; "" where hosts do not tell that.
    :param dag_id: with `run_id`, the DAG run that configured or started it last.
    :param since: seconds since the epoch: when it was first claimed for this start of this host.
    """

    name: str
    host: str
    boot_id: str
    dag_id: str
    run_id: str
    since: float


class Daemons:
    """The supervisords of all triggerers that share this inbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self, name: str, host: str, boot_id: str, *, dag_id: str, run_id: str, allow_move: bool = False
    ) -> DaemonLocation | None:
        """Say that a supervisord lives on a host, unless it lives on another; return what was said so far, if anything.

        :param allow_move: it may come from another host, because who says so has looked there.
        """

        async def write(transaction: Transaction) -> DaemonLocation | None:
            mine: dict[str, Any] = {"host": host, "boot_id": boot_id, "dag_id": dag_id, "run_id": run_id}
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
        """Return where a supervisord lives; None when nobody said so."""
        return next((daemon for daemon in await self.all() if daemon.name == name), None)

    async def all(self) -> list[DaemonLocation]:
        """Return every supervisord, by name."""

        async def read(connection: AsyncConnection) -> list[DaemonLocation]:
            return [
                _daemon(row) for row in await connection.execute(select(daemons).order_by(daemons.c.name))
            ]

        return await self._database.read(read)

    async def release(self, name: str, host: str) -> None:
        """Say that a supervisord does not live on this host any more. Another host's word stays."""

        async def write(transaction: Transaction) -> None:
            mine = delete(daemons).where(daemons.c.name == name, daemons.c.host == host)
            await transaction.connection.execute(mine)

        await self._database.write(write)

    async def forget(self, name: str) -> DaemonLocation | None:
        """Forget where a supervisord lives, whose host is gone for good; return what is forgotten, if anything."""

        async def write(transaction: Transaction) -> DaemonLocation | None:
            chosen = delete(daemons).where(daemons.c.name == name).returning(daemons)
            row = (await transaction.connection.execute(chosen)).first()
            return None if row is None else _daemon(row)

        return await self._database.write(write)


def _daemon(row: Row[Any]) -> DaemonLocation:
    return DaemonLocation(row.name, row.host, row.boot_id, row.dag_id, row.run_id, row.since)
