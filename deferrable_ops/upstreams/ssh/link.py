"""The SSH connection to a machine, which all callers on an event loop share. The connection is opened when it is used
for the first time. A lost connection is opened again at the next use.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import (
    AirflowUnavailable,
    ConfigurationError,
    LoginRefused,
    MachineError,
    MachineUnavailable,
)
from deferrable_ops.shared import share
from deferrable_ops.upstreams.connection_extra import read_connection
from deferrable_ops.upstreams.machine.machine import MachineAddress
from deferrable_ops.upstreams.ssh.connection import SshSettings, ssh_settings
from deferrable_ops.upstreams.ssh.login import ConnectionDropped, import_asyncssh, log_in
from deferrable_ops.upstreams.ssh.shell import RemoteShell

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

T = TypeVar("T")

log = logging.getLogger(__name__)

# sshd allows 10 sessions per connection (MaxSessions). The shell and the bridge to sockets each use one session.
_COMMANDS: Final = 8
# If many connections are opened at the same time, sshd drops some of them (MaxStartups). A dropped connection is opened
# again, up to this number of attempts.
_CONNECT_ATTEMPTS: Final = 3
# If the server allows no more sessions, the library waits this number of seconds before it tries again.
_SESSION_PAUSE: Final = 0.1
_CLOSE_SECONDS: Final = 5.0
# In seconds. If the machine disappears without closing the connection, the library detects this after a minute.
_KEEPALIVE_INTERVAL: Final = 15.0


def use_link(address: MachineAddress) -> AbstractAsyncContextManager[Link]:
    """Return a context manager for the SSH connection to this address, which all callers on the event loop share."""
    assert address.ssh_conn_id is not None
    return share(("ssh link", address.ssh_conn_id, address.remote_host), partial(_open, address), Link.close)


async def _open(address: MachineAddress) -> Link:
    async def load() -> SshSettings:
        assert address.ssh_conn_id is not None
        return ssh_settings(
            *await read_connection(address.ssh_conn_id),
            remote_host=address.remote_host,
            connect_timeout=address.connect_timeout,
        )

    await asyncio.to_thread(import_asyncssh)
    return Link(await load(), load)


class Link:
    """A shared SSH connection, which is opened when it is used for the first time.

    :param load: a function that reads the settings of the Airflow connection. The function is called before each
        attempt to connect, because a user may have changed the password in the meantime.
    :param keepalive_interval: number of seconds between two SSH keepalive messages.
    """

    def __init__(
        self,
        settings: SshSettings,
        load: Callable[[], Awaitable[SshSettings]],
        *,
        keepalive_interval: float = _KEEPALIVE_INTERVAL,
    ) -> None:
        self.settings = settings
        self.commands = asyncio.Semaphore(_COMMANDS)
        self._shell: asyncio.Task[RemoteShell] | None = None
        self._shell_users = 0
        self._load = load
        self._keepalive_interval = keepalive_interval
        self._backoff = Backoff()
        self._connection: SSHClientConnection | None = None
        self._connecting: asyncio.Task[SSHClientConnection] | None = None

    async def connection(self) -> SSHClientConnection:
        """Return the SSH connection. If the connection is not open, open it."""
        if self._connection is not None:
            if not self._connection.is_closed():
                return self._connection
            log.info("The connection to %s was lost; opening a new connection", self.settings.name)
            self._connection = None
            # Reconnect after a random time: other processes may have lost their connections at the same moment.
            self._backoff.failed()
        if self._connecting is None:
            # Use a new context, because the task outlives the trigger that starts it.
            self._connecting = asyncio.create_task(self._connect(), context=Context())
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    async def session(self, open_session: Callable[[SSHClientConnection], Awaitable[T]]) -> T:
        """Call the function `open_session`, which opens a session on the SSH connection, and return the result of the
        function. If the server allows no further session at the moment, wait until the server allows one.

        :raises MachineUnavailable: if the SSH connection was lost.
        :raises LoginRefused: if the SSH server allows the login, but no commands.
        """
        import asyncssh

        while True:
            connection = await self.connection()
            # Shield the call from cancellation. A call that is cancelled halfway would leave its session open on the
            # server.
            opening = asyncio.ensure_future(open_session(connection))
            try:
                return await asyncio.shield(opening)
            except asyncssh.ChannelOpenError as refused:
                if connection.is_closed():
                    raise self._lost_error(refused) from None
                if refused.code == asyncssh.OPEN_REQUEST_SESSION_FAILED:
                    raise LoginRefused(
                        f"{self.settings.name} accepts the login, but does not run commands; "
                        "give the account a login shell, such as /bin/sh"
                    ) from None
                self._release_shell()
                await asyncio.sleep(_SESSION_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311
            except (asyncssh.Error, OSError) as error:
                raise self._lost_error(error) from None

    async def run_script(self, script: str, *arguments: str, seconds: float, about: str) -> tuple[int, bytes]:
        """Run a short shell script in the shell that all callers share. Return its exit code and its standard output.

        :param seconds: timeout in seconds. The shell runs one script after the other. If a script blocks, the scripts
            of all other callers also wait. After a timeout, the next callers get a new shell.
        :param about: what the script does, for the error message after a timeout.
        :raises MachineUnavailable: if the SSH connection was lost, or the script took longer than `seconds`.
        :raises LoginRefused: if the account has no shell.
        """
        opening = self._shell
        if opening is None or (_is_open(opening) and opening.result().is_closed):
            # Use a new context, because the task outlives the trigger that starts it.
            opening = self._shell = asyncio.create_task(self.session(self._open_shell), context=Context())
        self._shell_users += 1
        try:
            async with asyncio.timeout(seconds):
                shell = await asyncio.shield(opening)
                return await self.receive(shell.run(script, arguments))
        except TimeoutError:
            if opening.done():
                self._forget_shell(opening)
            raise MachineUnavailable(
                f"{about} took longer than {seconds:g} s on {self.settings.name}"
            ) from None
        except BaseException:
            if opening.done() and not _is_open(opening):
                self._forget_shell(opening)
            raise
        finally:
            self._shell_users -= 1

    async def receive(self, answer: Awaitable[T]) -> T:
        """Wait for a response that arrives over the SSH connection, and return it.

        :raises MachineUnavailable: if the SSH connection was lost.
        """
        import asyncssh

        try:
            return await answer
        except (asyncssh.Error, OSError) as error:
            raise self._lost_error(error) from None

    def _lost_error(self, error: Exception) -> MachineUnavailable:
        """Return the error to raise after the loss of the SSH connection. The message contains the text of `error`."""
        reason = self.settings.without_secrets(error) or type(error).__name__
        return MachineUnavailable(f"the connection to {self.settings.name} was lost: {reason}")

    async def close(self) -> None:
        """Close the SSH connection. Programs on the machine keep running."""
        for task in (self._shell, self._connecting):
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
                connection = await log_in(self.settings, keepalive_interval=self._keepalive_interval)
            except ConnectionDropped:
                self._backoff.failed()
                dropped += 1
                if dropped == _CONNECT_ATTEMPTS:
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
        except (AirflowUnavailable, ConfigurationError) as error:
            # Keep the previous settings. Otherwise an incomplete edit of the Airflow connection would end the watch of
            # the programs.
            log.warning("%s; continuing with the previous settings of the connection", error)

    def _connected(self, connecting: asyncio.Task[SSHClientConnection]) -> None:
        self._connecting = None
        if not connecting.cancelled() and connecting.exception() is None:
            self._connection = connecting.result()

    async def _open_shell(self, connection: SSHClientConnection) -> RemoteShell:
        return await RemoteShell(self.settings.name).start(connection)

    def _release_shell(self) -> None:
        """Close the shared shell if no caller uses the shell. The server then allows another session in place of the
        shell.
        """
        opening = self._shell
        if opening is not None and opening.done() and not self._shell_users:
            self._forget_shell(opening)

    def _forget_shell(self, opening: asyncio.Task[RemoteShell]) -> None:
        if self._shell is opening:
            self._shell = None
        if _is_open(opening):
            opening.result().close()


def _is_open(opening: asyncio.Task[RemoteShell]) -> bool:
    return opening.done() and not opening.cancelled() and opening.exception() is None
