"""Commands over SSH. What they are and what they are given travels on their standard input, and is in no list of
processes but as the program that runs in the end.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.exceptions import InputError
from deferrable_ops.upstreams.machine.signals import signal_of

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

# Reads one line, and does what it says; what comes after it is left to the program. (`sh` alone would read too much:
# dash 0.5.12 reads in blocks.) In quotes that all login shells understand in the same way.
_SHELL: Final = """exec /bin/sh -c 'IFS= read -r s && eval "$(printf %b "$s")"'"""
_LEFT_BEHIND: Final = 0.5  # seconds for the rest of the output, when a daemon may keep it open
_SAFE: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-./=:,+@")


def shell_command(prefix: str) -> str:
    """Return what the account's shell is told; it is the same for each command.

    :param prefix: what it does first.
    """
    return f"{prefix}\n{_SHELL}" if prefix.strip() else _SHELL


def script_line(arguments: Sequence[str], environment: Sequence[tuple[str, str]], mark: str = "") -> bytes:
    """Return the line that makes the shell become a program.

    :param mark: is said before it begins, with the process's id; what comes earlier is the account's own shell's.
    :raises InputError: an argument holds a zero character, which none can.
    """
    if any("\0" in argument for argument in arguments):
        raise InputError("an argument of a command holds a zero character")
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment)
    said = f"echo {mark} $$\n" if mark else ""
    script = f"{exports}{said}exec {shlex.join(arguments)}".encode(errors="surrogateescape")
    return b"".join(bytes((byte,)) if byte in _SAFE else b"\\0%03o" % byte for byte in script) + b"\n"


class Command:
    """A command on a machine. asyncssh tells it what happens.

    :param keep: how many bytes of its output are kept, the last ones.
    """

    def __init__(self, keep: int) -> None:
        self.pid: int | None = None
        self._mark = f"deferrable-ops-{secrets.token_hex(8)}"
        self._output = bytearray()
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._complete = asyncio.Event()
        self._keep = keep
        self._channel: Any = None
        self._closed = False

    @property
    def tail(self) -> str:
        """The end of what it has written so far."""
        return self._output[-self._keep :].decode(errors="replace")

    async def start(
        self,
        connection: SSHClientConnection,
        line: str,
        arguments: Sequence[str],
        environment: Sequence[tuple[str, str]],
        stdin: bytes,
    ) -> None:
        """Start it.

        :param line: what the account's shell is told.
        """
        given = script_line(arguments, environment, self._mark) + stdin
        await connection.create_session(lambda: self, line, encoding=None)  # type: ignore[arg-type, return-value]
        if self._closed:  # nobody waits for it any more
            self._channel.close()
            return
        with suppress(OSError):  # it has ended already: how, will be told
            self._channel.write(given)
            self._channel.write_eof()

    async def end(self) -> int:
        """Return its exit code; negative: the signal that ended it.

        :raises Exception: the connection was lost.
        """
        code = await asyncio.shield(self.code)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEFT_BEHIND):
                await self._complete.wait()
        return code

    def close(self) -> None:
        """Let go of it; it may go on."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()

    def connection_made(self, channel: Any) -> None:
        """Know the channel, to close it when starting is broken off."""
        self._channel = channel

    def session_started(self) -> None:
        """Do nothing."""

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Keep the end of what it writes to stdout and stderr."""
        self._output += data
        if self.pid is None and (begun := re.search(rf"{self._mark} (\d+)\n".encode(), self._output)):
            self.pid = int(begun[1])
            del self._output[: begun.end()]
        if len(self._output) > 2 * self._keep:
            del self._output[: -self._keep]

    def eof_received(self) -> bool:
        """Know that no more output comes."""
        self._complete.set()
        return True

    def pause_writing(self) -> None:
        """Do nothing: what is given is short."""

    def resume_writing(self) -> None:
        """Do nothing."""

    def xon_xoff_requested(self, client_can_do: bool) -> None:
        """Do nothing: there is no terminal."""

    def exit_status_received(self, status: int) -> None:
        """Know its exit code."""
        if not self.code.done():
            self.code.set_result(status)

    def exit_signal_received(self, name: str, core_dumped: bool, message: str, language: str) -> None:
        """Know the signal that ended it."""
        number = 0
        with suppress(InputError):
            number = signal_of(name)
        if not self.code.done():
            self.code.set_result(-number or -1)

    def connection_lost(self, error: Exception | None) -> None:
        """Know that nothing more comes."""
        self._complete.set()
        if not self.code.done():
            self.code.set_exception(error or ConnectionResetError("the session was closed"))
            self.code.exception()  # nobody may be waiting any more
