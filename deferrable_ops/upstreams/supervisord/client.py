"""Asynchronous client of supervisord's XML-RPC interface, over a Unix socket or a TCP port."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from xmlrpc.client import Fault

from deferrable_ops.exceptions import InputError, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.shared import share
from deferrable_ops.upstreams.http import import_aiohttp
from deferrable_ops.upstreams.supervisord import xmlrpc as supervisord_xmlrpc
from deferrable_ops.upstreams.supervisord.poller import ProcessPoller, ProcessSubscription

if TYPE_CHECKING:
    import aiohttp

Processes = list[dict[str, Any]]
"""The result of supervisord's method ``getAllProcessInfo``."""

T = TypeVar("T")

# supervisord handles one request at a time, so requests on more connections would only wait.
_CONNECTIONS: Final = 4
# Timeout in seconds.
_CALL_TIMEOUT: Final = 10.0
# Limit in bytes. The answer for thousands of programs is still smaller.
_MAX_ANSWER: Final = 2**24
# Limit in bytes. Answers up to this size are parsed on the event loop, which takes some milliseconds. Larger answers
# are parsed in a thread.
_MAX_PARSED_ON_LOOP: Final = 2**18
# Limit in characters.
_MAX_REASON: Final = 1000


@dataclass(frozen=True, slots=True)
class SupervisordAddress:
    """The address of a supervisord, with the user name and password for it.

    :param socket: path of supervisord's Unix socket. If ``socket`` is None, ``url`` is used.
    :param url: URL of supervisord's TCP server without credentials, for example ``http://127.0.0.1:9001/RPC2``.
    :param username: the user name that supervisord's Unix socket or TCP server requires, or None if no user name is
        required.
    :param password: the password in plain text. If supervisord's configuration contains only a hash of the password,
        give the password itself.
    :raises InputError: if ``socket`` and ``url`` are both given or both missing, or if the password is a hash.
    """

    socket: Path | None = None
    url: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the fields of the address."""
        if (self.socket is None) == (self.url is None):
            raise InputError("give either socket or url of the supervisord, but not both")
        if self.password is not None and self.password.startswith("{SHA}"):
            raise InputError("password is a hash, which cannot be used to log in; give the password itself")
        if self.url is not None and "@" in self.url:
            raise InputError("url contains credentials; give username and password instead")

    def __str__(self) -> str:
        """Return supervisord's socket path or URL. The returned text contains no secret."""
        return str(self.socket or self.url)


def use_supervisord(
    address: SupervisordAddress, *, call_timeout: float = _CALL_TIMEOUT
) -> AbstractAsyncContextManager[Supervisord]:
    """Return a context manager for a client of the supervisord with this address.

    All callers on the event loop share this client. The client connects when it is used for the first time.

    :param call_timeout: the longest time in seconds to wait for the response to a call.
    """
    key = ("supervisord", address, call_timeout)
    return share(key, partial(_open, address, call_timeout), Supervisord.close)


class Supervisord:
    """A client of one supervisord, with its own HTTP session.

    Each method raises SupervisordUnavailable if supervisord does not respond, and SupervisordRefused if supervisord
    returns an error or rejects the user name or password.
    """

    def __init__(self, address: SupervisordAddress, session: aiohttp.ClientSession) -> None:
        self._address = address
        self._session = session
        self._url = address.url or "http://localhost/RPC2"
        self._pollers: dict[Callable[[Processes, Any], Any], ProcessPoller[Any]] = {}

    def watch(
        self, interval: float, interpret: Callable[[Processes, T | None], T]
    ) -> AbstractContextManager[ProcessSubscription[T]]:
        """Return a subscription to the states of all processes of supervisord. All subscriptions share the
        requests to supervisord.

        :param interval: number of seconds between two requests for the states of the processes.
        :param interpret: a function that converts each response. The subscription returns the result of this function.
            The function gets two arguments: the response, and the function's result for the previous response. For the
            first response, the second argument is None. The function runs on the event loop, so it must be fast. If
            several subscriptions have the same function, the function is called only once for each response.
        """
        if interpret not in self._pollers:
            self._pollers[interpret] = ProcessPoller(self._reader(interpret))
        return self._pollers[interpret].watch(interval)

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call an XML-RPC method of supervisord, such as ``supervisor.getState``, and return its result.

        :raises UnreadableAnswer: if the response is not valid XML-RPC, or contains text that cannot be decoded.
        """
        body = await self._post(supervisord_xmlrpc.request(method, arguments))
        try:
            if len(body) <= _MAX_PARSED_ON_LOOP:
                return supervisord_xmlrpc.answer(body)
            return await asyncio.to_thread(supervisord_xmlrpc.answer, body)
        except Fault as fault:
            raise _refused(method, fault.faultCode, fault.faultString) from None

    async def multicall(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """Make several XML-RPC calls in one request, and return their results.

        If a call failed, its result is a SupervisordRefused, which is not raised.

        :param calls: for each call, the name of the method and a tuple with its arguments.
        """
        requests = [{"methodName": method, "params": _sendable(arguments)} for method, arguments in calls]
        answers = await self.call("system.multicall", requests)
        return [
            _refused(method, answer["faultCode"], answer["faultString"])
            if isinstance(answer, dict) and answer.keys() == {"faultCode", "faultString"}
            else answer
            for (method, _), answer in zip(calls, answers, strict=True)
        ]

    async def processes(self) -> Processes:
        """Return the states of all processes of supervisord, as its method ``getAllProcessInfo`` returns them."""
        found: Processes = await self.call("supervisor.getAllProcessInfo")
        return found

    async def close(self) -> None:
        """Close the HTTP session. supervisord keeps running."""
        await self._session.close()

    def _reader(self, interpret: Callable[[Processes, T | None], T]) -> Callable[[], Awaitable[T]]:
        previous: T | None = None

        async def read() -> T:
            nonlocal previous
            previous = interpret(await self.processes(), previous)
            return previous

        return read

    async def _post(self, body: bytes) -> bytes:
        import aiohttp

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
                f"supervisord at {self._address} rejected the login; check username and password"
            )
        if status != 200:
            raise SupervisordUnavailable(
                f"supervisord at {self._address} answered with HTTP status {status}; check that this is the address "
                "of a supervisord"
            )
        return answer

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Read the body of an HTTP response, up to a maximum length. The method counts the bytes itself, because the
        header ``Content-Length`` may be wrong.
        """
        found = bytearray()
        async for part in response.content.iter_any():
            found += part
            if len(found) > _MAX_ANSWER:
                raise SupervisordUnavailable(
                    f"{self._address} sends more than {_MAX_ANSWER // 2**20} MB, which supervisord never does; check "
                    "that this is the address of a supervisord"
                )
        return bytes(found)


async def _open(address: SupervisordAddress, call_timeout: float) -> Supervisord:
    await import_aiohttp()
    import aiohttp

    # A kept connection would still work after the socket was removed, but no other client could connect.
    connector: aiohttp.BaseConnector = (
        aiohttp.UnixConnector(str(address.socket), limit=_CONNECTIONS, force_close=True)
        if address.socket
        else aiohttp.TCPConnector(limit=_CONNECTIONS)
    )
    headers = {"Content-Type": "text/xml", "Accept-Encoding": "identity"}
    if address.password is not None:
        login = f"{address.username or ''}:{address.password}".encode()
        headers["Authorization"] = f"Basic {b64encode(login).decode()}"
    timeout = aiohttp.ClientTimeout(total=call_timeout)
    # Do not decompress answers: a few compressed bytes may expand to gigabytes.
    session = aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=timeout, auto_decompress=False
    )
    return Supervisord(address, session)


def _sendable(arguments: tuple[Any, ...]) -> list[Any]:
    return [supervisord_xmlrpc.sendable(argument) for argument in arguments]


def _refused(method: str, code: int, reason: str) -> SupervisordRefused:
    return SupervisordRefused(f"supervisord refused {method}: {str(reason)[:_MAX_REASON]}", code)
