"""The one SSH connection to a machine, for all who use it: made when it is needed, and again when it was lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from deferrable_ops.exceptions import ConfigurationError, MachineError, MachineRefused, MachineUnavailable
from deferrable_ops.shared import share
from deferrable_ops.upstreams.backoff import Backoff
from deferrable_ops.upstreams.connection_extra import read_connection
from deferrable_ops.upstreams.machine.machine import MachineAddress
from deferrable_ops.upstreams.ssh.connection import SshSettings, ssh_settings
from deferrable_ops.upstreams.ssh.login import ConnectionDropped, import_asyncssh, log_in

if TYPE_CHECKING:
    from asyncssh import SFTPClient, SSHClientConnection

T = TypeVar("T")

log = logging.getLogger(__name__)

# sshd allows 10 sessions in a connection (MaxSessions). SFTP and the bridge to sockets are one each.
_COMMANDS: Final = 8
# sshd drops some of those who come at once (MaxStartups), and each of them may come again.
_ATTEMPTS: Final = 3
_SESSION_PAUSE: Final = 0.1  # seconds, until a session may have become free
_CLOSE_SECONDS: Final = 5.0


def use_link(where: MachineAddress) -> AbstractAsyncContextManager[Link]:
    """Use the connection that all on the running event loop share."""
    assert where.ssh_conn_id is not None
    return share(("ssh link", where.ssh_conn_id, where.remote_host), partial(_opened, where), Link.close)


async def _opened(where: MachineAddress) -> Link:
    async def load() -> SshSettings:
        assert where.ssh_conn_id is not None
        return ssh_settings(
            *await read_connection(where.ssh_conn_id),
            remote_host=where.remote_host,
            connect_timeout=where.connect_timeout,
        )

    await asyncio.to_thread(import_asyncssh)
    return Link(await load(), load)


class Link:
    """An SSH connection that stands when somebody needs it.

    :param load: reads the settings anew, for each connection: a password may have been changed.
    """

    def __init__(self, settings: SshSettings, load: Callable[[], Awaitable[SshSettings]]) -> None:
        self.settings = settings
        self.commands = asyncio.Semaphore(_COMMANDS)
        self._load = load
        self._backoff = Backoff()
        self._connection: SSHClientConnection | None = None
        self._connecting: asyncio.Task[SSHClientConnection] | None = None
        self._sftp: asyncio.Task[tuple[SSHClientConnection, SFTPClient]] | None = None
        self._sftp_users = 0

    async def connection(self) -> SSHClientConnection:
        """Return the connection, which is made now if there is none."""
        if self._connection is not None:
            if not self._connection.is_closed():
                return self._connection
            log.info("The connection to %s was lost", self.settings.name)
            self._connection = None
            self._backoff.failed()  # whoever lost it at the same moment does not come back at the same moment
        if self._connecting is None:
            # In a context of its own: it outlives the trigger that happens to come first.
            self._connecting = asyncio.create_task(self._connect(), context=Context())
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    async def session(self, open_session: Callable[[SSHClientConnection], Awaitable[T]]) -> T:
        """Return what a function opens that takes one of the connection's sessions; wait while there are none left.

        :raises MachineUnavailable: the connection was lost.
        :raises MachineRefused: the server offers no such session.
        """
        import asyncssh

        while True:
            connection = await self.connection()
            # Whoever gives up waiting leaves an opening that ends by itself: broken off, it would keep its session.
            opening = asyncio.ensure_future(open_session(connection))
            try:
                return await asyncio.shield(opening)
            except asyncssh.ChannelOpenError as refused:
                if connection.is_closed():
                    raise self.lost(refused) from None
                if refused.code == asyncssh.OPEN_REQUEST_SESSION_FAILED:
                    raise MachineRefused(
                        f"{self.settings.name} lets us in, but neither run commands nor transfer files: its sshd needs "
                        "a shell for this account, and `Subsystem sftp`"
                    ) from None
                self._give_sftp_back()
                await asyncio.sleep(_SESSION_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311
            except (asyncssh.Error, OSError) as error:
                raise self.lost(error) from None

    @asynccontextmanager
    async def sftp(self, seconds: float) -> AsyncIterator[SFTPClient]:
        """Use the SFTP session that all share. What a request is refused for is the caller's to understand.

        :param seconds: that it may take. sshd's SFTP does one thing after another: what takes longer, as opening a pipe
            does, holds up everybody's, and the next ones get another session.
        :raises TimeoutError: it took longer.
        :raises MachineUnavailable: the connection was lost.
        """
        import asyncssh

        opening = self._sftp
        if opening is None or (_is_open(opening) and opening.result()[0].is_closed()):
            # In a context of its own, as the connection.
            opening = self._sftp = asyncio.create_task(self.session(_open_sftp), context=Context())
        self._sftp_users += 1
        try:
            async with asyncio.timeout(seconds):
                _, client = await asyncio.shield(opening)
                yield client
        except (asyncssh.DisconnectError, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            self._forget_sftp(opening)
            raise self.lost(error) from None
        except TimeoutError:
            if opening.done():
                self._forget_sftp(opening)
            raise
        except BaseException:
            if opening.done() and not _is_open(opening):
                self._forget_sftp(opening)
            raise
        finally:
            self._sftp_users -= 1

    async def told(self, answer: Awaitable[T]) -> T:
        """Return what comes over the connection.

        :raises MachineUnavailable: the connection was lost.
        """
        import asyncssh

        try:
            return await answer
        except (asyncssh.Error, OSError) as error:
            raise self.lost(error) from None

    def lost(self, error: Exception) -> MachineUnavailable:
        """Return what to raise when the connection broke."""
        reason = self.settings.without_secrets(error) or type(error).__name__
        return MachineUnavailable(f"the connection to {self.settings.name} was lost: {reason}")

    async def close(self) -> None:
        """Close the connection; what runs on the machine goes on."""
        for task in (self._sftp, self._connecting):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._connection is not None:
            self._connection.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._connection.wait_closed()

    async def _connect(self) -> SSHClientConnection:
        dropped = 0
        while True:
            await self._backoff.wait()
            await self._read_settings()
            try:
                connection = await log_in(self.settings)
            except ConnectionDropped:
                self._backoff.failed()
                dropped += 1
                if dropped == _ATTEMPTS:
                    raise
            except MachineError:
                self._backoff.failed()
                raise
            else:
                self._backoff.succeeded()
                return connection

    async def _read_settings(self) -> None:
        try:
            self.settings = await self._load()
        except ConfigurationError as error:
            # The machine was reached with what is known, and is watched: somebody's half-done change ends no watch.
            log.warning("%s; going on with what the connection was before", error)

    def _connected(self, connecting: asyncio.Task[SSHClientConnection]) -> None:
        self._connecting = None
        if not connecting.cancelled() and connecting.exception() is None:
            self._connection = connecting.result()

    def _give_sftp_back(self) -> None:
        """End the SFTP session if nobody uses it: another wants a session, and the server has no more."""
        opening = self._sftp
        if opening is not None and opening.done() and not self._sftp_users:
            self._forget_sftp(opening)

    def _forget_sftp(self, opening: asyncio.Task[tuple[SSHClientConnection, SFTPClient]]) -> None:
        if self._sftp is opening:
            self._sftp = None
        if _is_open(opening):
            opening.result()[1].exit()


def _is_open(opening: asyncio.Task[tuple[SSHClientConnection, SFTPClient]]) -> bool:
    return opening.done() and not opening.cancelled() and opening.exception() is None


async def _open_sftp(connection: SSHClientConnection) -> tuple[SSHClientConnection, SFTPClient]:
    return connection, await connection.start_sftp_client()
