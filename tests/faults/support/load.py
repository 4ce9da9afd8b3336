"""Callbacks in thousands, and what the endpoints said of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

import aiohttp

from deferrable_ops.inbox import Attempt, Inbox, NewWait, Wait

_NAMESPACE = UUID("b1a7f1f2-0d3c-4a64-9d3b-6c2b9c7d7d11")
_AT_ONCE = 64
_LOOK_EVERY = 0.05


def attempt(number: int) -> Attempt:
    """Return the attempt that the wait of this number is for, the same in every process."""
    name = f"wait_{number}"
    return Attempt(str(uuid5(_NAMESPACE, name)), 1, "load", "run", name)


def new_wait(number: int) -> NewWait:
    """Return the wait of this number."""
    return NewWait(attempt(number), "webhook", timeout=3600)


def payload(number: int) -> dict[str, Any]:
    """Return what is sent to the wait of this number, and to no other."""
    return {"number": number, "text": f"the answer to {number}"}


async def register(inbox: Inbox, numbers: Iterable[int]) -> None:
    """Register waits, and return when all of them are committed."""
    await asyncio.gather(*(inbox.waits.register(new_wait(number)) for number in numbers))


async def paths(inbox: Inbox, numbers: Iterable[int]) -> dict[int, str]:
    """Return the path of each wait's callback address."""
    waits = await inbox.waits.get_many([attempt(number).wait_id for number in numbers])
    return {number_of(wait): f"/callbacks/{await inbox.keys.token(wait.id, wait.key_id)}" for wait in waits}


def number_of(wait: Wait) -> int:
    """Return the number of a wait of this load."""
    return int(wait.attempt.task_id.removeprefix("wait_"))


@dataclass
class Load:
    """Sends callbacks, each to whichever endpoint accepts connections.

    :param endpoints: their URLs.
    :param paths: the path of each wait's callback address, by number.
    """

    endpoints: Sequence[str]
    paths: dict[int, str]
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    unanswered: set[int] = field(default_factory=set)
    errors: int = 0

    async def send(self, numbers: Sequence[int], *, until_acknowledged: bool = False) -> None:
        """Send the payload of every wait, many at once.

        :param until_acknowledged: send it again after an error, as services do; else leave it unanswered.
        """
        at_once = asyncio.Semaphore(_AT_ONCE)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:

            async def send_one(number: int) -> None:
                async with at_once:
                    while not await self._is_answered(session, number) and until_acknowledged:
                        await asyncio.sleep(_LOOK_EVERY)

            await asyncio.gather(*map(send_one, numbers))

    async def send_again(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Send the same once more, and return the receipts."""
        again = Load(self.endpoints, self.paths)
        await again.send(numbers)
        assert not again.unanswered
        return again.acknowledged

    async def when_acknowledged(self, count: int, act: Callable[[], Awaitable[None]]) -> None:
        """Do something once so many callbacks are acknowledged, while others are on their way."""
        while len(self.acknowledged) < count:
            await asyncio.sleep(_LOOK_EVERY / 10)
        await act()

    async def _is_answered(self, session: aiohttp.ClientSession, number: int) -> bool:
        try:
            status, body = await self._post(session, number)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return self._note_error(number)
        assert status in (200, 503), f"callback {number} was answered with {status}: {body!r}"
        if status == 503:
            return self._note_error(number)
        self.unanswered.discard(number)
        self.acknowledged[number] = body
        return True

    def _note_error(self, number: int) -> bool:
        self.errors += 1
        self.unanswered.add(number)
        return False

    async def _post(self, session: aiohttp.ClientSession, number: int) -> tuple[int, bytes]:
        body = json.dumps(payload(number)).encode()
        turn = number
        while True:
            url = f"{self.endpoints[turn % len(self.endpoints)]}{self.paths[number]}"
            try:
                async with session.post(url, data=body) as response:
                    return response.status, await response.read()
            except aiohttp.ClientConnectorError:  # nothing was sent: another endpoint may listen
                turn += 1
                await asyncio.sleep(_LOOK_EVERY)
