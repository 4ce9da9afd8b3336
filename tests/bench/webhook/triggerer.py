"""A process that runs triggers whose waits nothing comes for, until the bench sends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy import Engine, event

from bench.common.processes import serve
from bench.common.triggerer import Triggerer
from bench.webhook.triggers import TRIGGERS, TimedTrigger
from deferrable_ops.inbox import NO_RETRY_TIMEOUT, use_inbox

_REGISTERED_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 0.2


class WebhookTriggerer(Triggerer):
    """What the bench asks of the process."""

    def __init__(self) -> None:
        super().__init__()
        self._queries = 0
        event.listen(Engine, "before_cursor_execute", self._count_query)

    async def grow(self, kind: str, to: int) -> None:
        """Run triggers until there are so many of them, and all wait."""
        classpath, kwargs = TRIGGERS[kind]
        await self.start(classpath, [kwargs] * (to - self.count))
        if kind != "bare":
            async with (
                use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox,
                asyncio.timeout(_REGISTERED_SECONDS),
            ):
                while len(list(inbox.watcher.watched)) < self.count:
                    await asyncio.sleep(_LOOK_SECONDS)
        await self.quiet()

    async def idle(self, seconds: float) -> tuple[float, float]:
        """Return the seconds of CPU time, and the queries, that this process needs a second while nothing happens."""
        queries, cpu, started = self._queries, time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        lasted = time.monotonic() - started
        return (time.process_time() - cpu) / lasted, (self._queries - queries) / lasted

    async def tokens(self) -> list[tuple[str, str]]:
        """Return the id and the token of every wait."""
        async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
            waits = await inbox.waits.find()
            return [(wait.id, await inbox.keys.token(wait.id, wait.key_id)) for wait in waits]

    async def fired(self) -> dict[str, float]:
        """Return when the trigger of each wait yielded its event, by the machine's monotonic clock."""
        return TimedTrigger.fired

    def _count_query(self, *_: object) -> None:
        self._queries += 1


@asynccontextmanager
async def _triggerer() -> AsyncIterator[WebhookTriggerer]:
    yield WebhookTriggerer()


if __name__ == "__main__":
    serve(_triggerer)
