"""supervisord: its XML-RPC, over a Unix socket or a port, from an event loop."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from xmlrpc.client import Fault

import aiohttp

from deferrable_ops.exceptions import InputError, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.shared import share
from deferrable_ops.upstreams.supervisord import xmlrpc as supervisord_xmlrpc
from deferrable_ops.upstreams.supervisord.poller import ProcessPoller, ProcessSubscription

Processes = list[dict[str, Any]]
"""What ``getAllProcessInfo`` answers."""

T = TypeVar("T")

# supervisord does one thing at a time; more connections would only wait there.
_CONNECTIONS: Final = 4
_CALL_TIMEOUT: Final = 10.0  # seconds for a call
_LARGEST: Final = 2**24  # bytes of an answer; thousands of programs need less
_AT_ONCE: Final = 2**18  # bytes of an answer that the event loop itself reads, in some milliseconds
_REASON: Final = 1000  # characters


@dataclass(frozen=True, slots=True)
class SupervisordAddress:
    """Where a supervisord answers.

    :param socket: the Unix socket's path; None: ``url`` is used.
    :param url: of an inet server, as ``http://127.0.0.1:9001/RPC2``; without a login in it.
    :param username: of the server that is used.
    :param password: in plain text, also where the server keeps a hash of it.
    :raises InputError: there is neither or both, or the password is a hash.
    """

    socket: Path | None = None
    url: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the parameters."""
        if (self.socket is None) == (self.url is None):
            raise InputError("give a supervisord's socket, or its url")
        if self.password is not None and self.password.startswith("{SHA}"):
            raise InputError("password is a hash, with which nobody can log in; give the password itself")
        if self.url is not None and "@" in self.url:
            raise InputError("url holds a login; give username and password instead")

    def __str__(self) -> str:
        """Return the socket or the URL, which hold no secret."""
        return str(self.socket or self.url)


def use_supervisord(address: SupervisordAddress) -> AbstractAsyncContextManager[Supervisord]:
    """Use the session with a supervisord that all on the running event loop share. It connects with the first call."""
    return share(("supervisord", address), partial(_opened, address), Supervisord.close)


class Supervisord:
    """A supervisord, through one HTTP session.

    Every method raises SupervisordUnavailable when it does not answer, and SupervisordRefused when it says no.
    """

    def __init__(self, address: SupervisordAddress, session: aiohttp.ClientSession) -> None:
        self._address = address
        self._session = session
        self._url = address.url or "http://localhost/RPC2"
        self._feeds: dict[Callable[[Processes], Any], ProcessPoller[Any]] = {}

    def watch(
        self, interval: float, interpret: Callable[[Processes], T]
    ) -> AbstractContextManager[ProcessSubscription[T]]:
        """Watch all its processes, together with all others who do: supervisord is asked once for all.

        :param interval: seconds between two readings.
        :param interpret: what to make of a reading, once for all who give the same function; it holds up the loop.
        """
        if interpret not in self._feeds:
            self._feeds[interpret] = ProcessPoller(partial(self._read_as, interpret))
        return self._feeds[interpret].watch(interval)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Return the answer to one call, as ``supervisor.getState``.

        :raises UnreadableAnswer: it holds text that XML cannot carry.
        """
        body = await self._post(supervisord_xmlrpc.request(method, arguments))
        try:
            if len(body) <= _AT_ONCE:
                return supervisord_xmlrpc.answer(body)
            return await asyncio.to_thread(supervisord_xmlrpc.answer, body)
        except Fault as fault:
            raise _refused(method, fault.faultCode, fault.faultString) from None

    async def multicall(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Return the answers to several calls, made as one; that of a call which failed is a SupervisordRefused.

        :param calls: method and arguments of each.
        """
        asked = [{"methodName": method, "params": _sendable(arguments)} for method, arguments in calls]
        answers = await self.call("system.multicall", asked)
        return [
            _refused(method, answer["faultCode"], answer["faultString"])
            if isinstance(answer, dict) and answer.keys() == {"faultCode", "faultString"}
            else answer
            for (method, _), answer in zip(calls, answers, strict=True)
        ]

    async def processes(self) -> Processes:
        """Return what ``getAllProcessInfo`` says of every process."""
        found: Processes = await self.call("supervisor.getAllProcessInfo")
        return found

    async def close(self) -> None:
        """Close the session; supervisord goes on."""
        await self._session.close()

    async def _read_as(self, interpret: Callable[[Processes], T]) -> T:
        return interpret(await self.processes())

    async def _post(self, body: bytes) -> bytes:
        try:
            async with self._session.post(
                self._url, data=body, headers={"Content-Type": "text/xml"}
            ) as response:
                answer = await self._read(response)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise SupervisordUnavailable(
                f"supervisord does not answer at {self._address}: {type(error).__name__}"
            ) from None
        if status in (401, 403):
            raise SupervisordRefused(
                f"supervisord at {self._address} refuses the login; check username and password"
            )
        if status != 200:
            raise SupervisordUnavailable(f"supervisord at {self._address} answers with HTTP {status}")
        return answer

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return an answer's body, whose length is not believed: whoever has the machine may send anything."""
        found = bytearray()
        async for part in response.content.iter_any():
            found += part
            if len(found) > _LARGEST:
                raise SupervisordUnavailable(
                    f"what answers at {self._address} sends more than {_LARGEST // 2**20} MB, which no supervisord does"
                )
        return bytes(found)


async def _opened(address: SupervisordAddress) -> Supervisord:
    connector: aiohttp.BaseConnector = (
        aiohttp.UnixConnector(str(address.socket), limit=_CONNECTIONS)
        if address.socket
        else aiohttp.TCPConnector(limit=_CONNECTIONS)
    )
    headers = {"Content-Type": "text/xml", "Accept-Encoding": "identity"}
    if address.password is not None:
        login = f"{address.username or ''}:{address.password}".encode()
        headers["Authorization"] = f"Basic {b64encode(login).decode()}"
    timeout = aiohttp.ClientTimeout(total=_CALL_TIMEOUT)
    # A few bytes that are compressed may become gigabytes.
    session = aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout, auto_decompress=False
    )
    return Supervisord(address, session)


def _sendable(arguments: tuple[Any, ...]) -> list[Any]:
    return [supervisord_xmlrpc.sendable(argument) for argument in arguments]


def _refused(method: str, code: int, reason: str) -> SupervisordRefused:
    return SupervisordRefused(f"supervisord refused {method}: {str(reason)[:_REASON]}", code)
