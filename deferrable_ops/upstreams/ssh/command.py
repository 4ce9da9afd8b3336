"""Runs commands over SSH.

The remote shell receives the program with its arguments, its environment variables and its input on standard input. So
users of the remote machine can see the program and its arguments in the list of processes, but not the program's
environment variables and input.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.exceptions import InputError, MachineError, MachineRefused, MachineUnavailable
from deferrable_ops.upstreams.machine.signals import signal_of

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

ERRORS_KEPT: Final = 500
"""How many bytes of an output an error message contains at most."""

# A shell command that reads one line and executes it. The program in this line can read the rest of standard input.
# (With `sh` alone, the shell would read too much: dash 0.5.12 reads in blocks.) All login shells parse these quotes in
# the same way.
_SHELL: Final = """exec /bin/sh -c 'IFS= read -r s && eval "$(printf %b "$s")"'"""
# How many seconds to wait for the end of the output. A daemon that the command started may keep the output open.
_OUTPUT_SECONDS: Final = 0.5
# The texts with which a shell reports that it cannot start a program now.
_SHELL_BUSY: Final = ("Resource temporarily unavailable", "Cannot allocate memory")
_SAFE: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _-./=:,+@")


def shell_command(prefix: str) -> str:
    """Return the command line that the library sends to the shell of the remote account. This command line is the same
    for all programs; it runs the script that it reads from its standard input.

    :param prefix: a shell command that runs before the program, for example ``source /opt/venv/bin/activate``; "" for
        no command.
    """
    return f"{prefix}\n{_SHELL}" if prefix.strip() else _SHELL


def script_line(arguments: Sequence[str], environment: Sequence[tuple[str, str]], mark: str = "") -> bytes:
    """Return the first line to write to the standard input of the command line from :func:`shell_command`. This line
    contains a shell script that runs the program.

    :param mark: a text that the script prints, together with the process id, immediately before the program starts. The
        output before this text comes from the shell of the remote account, and not from the program.
    :raises InputError: if an argument contains a null character.
    """
    if any("\0" in argument for argument in arguments):
        raise InputError("an argument of a command contains a null character; remove the character")
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment)
    echo_mark = f"echo {mark} $$\n" if mark else ""
    return escaped_line(f"{exports}{echo_mark}exec {shlex.join(arguments)}")


def escaped_line(script: str) -> bytes:
    """Return a shell script as one line, from which ``printf %b`` restores the script."""
    text = script.encode(errors="surrogateescape")
    return b"".join(bytes((byte,)) if byte in _SAFE else b"\\0%03o" % byte for byte in text) + b"\n"


def not_started_error(machine: str, prefix: str, code: int, output: str) -> MachineError:
    """Return the error to raise if the shell of the remote account ended before the shell started a command.

    :param machine: the machine's name in error messages.
    :param prefix: the shell command that was to run before the command; "" for no such shell command.
    :param output: the last part of what the shell printed.
    """
    printed = f"The shell ended with exit code {code} and printed {output!r}"
    kind = MachineUnavailable if any(text in output for text in _SHELL_BUSY) else MachineRefused
    if prefix:
        # A command without the prefix has read the machine's identity, so the shell itself works.
        return kind(f"command_prefix failed on {machine}; correct command_prefix. {printed}")
    return kind(
        f"{machine} does not run shell commands as expected; give the account a login shell, such as /bin/sh. {printed}"
    )


class Command:
    """A command that runs on a remote machine. asyncssh calls :meth:`connection_made`, :meth:`data_received` and the
    other callbacks of an asyncssh session.

    :param keep: how many bytes of the command's output to keep. The last bytes are kept. If `keep` is None, all bytes
        of standard output are kept; standard error is kept only for :attr:`tail`.
    """

    def __init__(self, keep: int | None) -> None:
        self.pid: int | None = None
        self._mark = f"deferrable-ops-{secrets.token_hex(8)}"
        self._output = bytearray()
        self._errors = bytearray()
        self.exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._output_complete = asyncio.Event()
        self._keep = keep
        self._channel: Any = None
        self._closed = False

    @property
    def output(self) -> bytes:
        """The output that the command has written so far, or its last part."""
        return bytes(self._output[-self._keep :] if self._keep else self._output)

    @property
    def tail(self) -> str:
        """The last part of the output as text, for error messages. If :attr:`pid` is None, the command has not started,
        and the text is the output of the remote account's shell.
        """
        return (self._errors + self.output)[-ERRORS_KEPT:].decode(errors="replace")

    async def start(
        self,
        connection: SSHClientConnection,
        line: str,
        arguments: Sequence[str],
        environment: Sequence[tuple[str, str]],
        stdin: bytes,
    ) -> None:
        """Start the command.

        :param line: the command line from :func:`shell_command`.
        """
        given = script_line(arguments, environment, self._mark) + stdin
        await connection.create_session(lambda: self, line, encoding=None)  # type: ignore[arg-type, return-value]
        if self._closed:
            # While the session was opened, the caller stopped waiting.
            self._channel.close()
            return
        # An OSError means that the command has already ended. Its exit status is received later.
        with suppress(OSError):
            self._channel.write(given)
            self._channel.write_eof()

    async def wait(self) -> int:
        """Wait until the command ends, and return its exit code. A negative code stands for a signal: for example, -9
        means that the signal 9 ended the command.

        :raises Exception: if the SSH connection was lost.
        """
        code = await asyncio.shield(self.exit_code)
        with suppress(TimeoutError):
            async with asyncio.timeout(_OUTPUT_SECONDS):
                await self._output_complete.wait()
        return code

    def close(self) -> None:
        """Close the SSH session. A command that has not ended may keep running."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()

    def connection_made(self, channel: Any) -> None:
        """Store the SSH channel, so that the channel can be closed if the asyncio task is cancelled while the command
        starts.
        """
        self._channel = channel

    def session_started(self) -> None:
        """Do nothing, because :meth:`start` sends the input of the command."""

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Store the command's output, and read the process id, which the output contains after the mark."""
        if datatype is not None and self._keep is None:
            self._errors = (self._errors + data)[-ERRORS_KEPT:]
            return
        self._output += data
        if self.pid is None and (mark := re.search(rf"{self._mark} (\d+)\n".encode(), self._output)):
            self.pid = int(mark[1])
            del self._output[: mark.end()]
        if self._keep is not None and len(self._output) > 2 * self._keep:
            del self._output[: -self._keep]

    def eof_received(self) -> bool:
        """Record that the command will send no more output."""
        self._output_complete.set()
        return True

    def pause_writing(self) -> None:
        """Do nothing, because the command's input is short."""

    def resume_writing(self) -> None:
        """Do nothing, because :meth:`pause_writing` does nothing."""

    def xon_xoff_requested(self, client_can_do: bool) -> None:
        """Do nothing, because the SSH session has no terminal."""

    def exit_status_received(self, status: int) -> None:
        """Store the exit code of the command, for :meth:`wait`."""
        if not self.exit_code.done():
            self.exit_code.set_result(status)

    def exit_signal_received(self, name: str, core_dumped: bool, message: str, language: str) -> None:
        """Store the signal that ended the command, for :meth:`wait`."""
        number = 0
        with suppress(InputError):
            number = signal_of(name)
        if not self.exit_code.done():
            self.exit_code.set_result(-number or -1)

    def connection_lost(self, error: Exception | None) -> None:
        """Record that the command will send no more output. If the command has not ended, :meth:`wait` raises an
        error.
        """
        self._output_complete.set()
        if not self.exit_code.done():
            self.exit_code.set_exception(
                error or ConnectionResetError("the SSH session was closed before the command ended")
            )
            # Mark the exception as retrieved. Otherwise asyncio would warn if the caller has stopped waiting.
            self.exit_code.exception()
