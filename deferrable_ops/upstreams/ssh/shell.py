"""A shell on a remote machine that runs many short scripts, one after the other, in one SSH session.

Without this shell, each script would need its own SSH session. sshd then starts the account's login shell each time,
which takes up to a second if its startup files are long.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.upstreams.ssh.command import (
    ERRORS_KEPT,
    escaped_line,
    not_started_error,
    script_line,
    shell_command,
)

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

# Each line of the input is one script. After its output, the shell prints the mark and the exit code.
_LOOP: Final = """while IFS= read -r line
do (eval "$(printf %b "$line")") </dev/null; printf '\\n%s %s\\n' "$1" "$?"
done
"""


# In bytes: the line breaks, the space and the exit code around the mark.
_LONGEST_REST: Final = 8


class RemoteShell:
    """A shell that is running on a remote machine. asyncssh calls :meth:`connection_made`, :meth:`data_received` and
    the other callbacks of an asyncssh session.

    :param name: the machine's name in error messages.
    """

    def __init__(self, name: str) -> None:
        self.is_closed = False
        self._name = name
        self._mark = f"deferrable-ops-{secrets.token_hex(8)}"
        self._end = re.compile(rf"\n{self._mark} (\d+)\n".encode())
        # The part of the output before this position contains no end.
        self._searched = 0
        self._began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers: deque[asyncio.Future[tuple[int, bytes]]] = deque()
        self._output = bytearray()
        self._errors = bytearray()
        self._exit_code = -1
        self._channel: Any = None

    async def start(self, connection: SSHClientConnection) -> RemoteShell:
        """Start the shell, and return this object.

        :raises MachineRefused: if the login shell of the remote account ended before it started this shell.
        """
        await connection.create_session(lambda: self, shell_command(""), encoding=None)  # type: ignore[arg-type,return-value]
        self._write(script_line(["sh", "-c", _LOOP, "sh", self._mark], (), self._mark))
        await self._began
        return self

    async def run(self, script: str, arguments: Sequence[str]) -> tuple[int, bytes]:
        """Run a script after the end of all scripts that callers passed earlier. Return the script's exit code and its
        standard output.

        :raises OSError: if the shell has ended, or the SSH connection was lost.
        """
        if self.is_closed:
            raise self._lost_error(None)
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._write(escaped_line(f"set -- {shlex.join(arguments)}\n{script}"))
        return await answer

    def close(self) -> None:
        """Close the SSH session. The shell ends after the script that it runs."""
        if self._channel is not None:
            self._channel.close()

    def _write(self, line: bytes) -> None:
        # An OSError means that the channel is closed. asyncssh then calls connection_lost().
        with suppress(OSError):
            self._channel.write(line)

    def _lost_error(self, error: Exception | None) -> Exception:
        return error or ConnectionResetError("the shell of the SSH session has ended")

    def connection_made(self, channel: Any) -> None:
        """Store the SSH channel, which :meth:`close` needs."""
        self._channel = channel

    def session_started(self) -> None:
        """Do nothing, because :meth:`start` sends the first line."""

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Store the output of the running script. The mark shows where this output ends."""
        if datatype is not None:
            self._errors = (self._errors + data)[-ERRORS_KEPT:]
            return
        self._output += data
        if not self._began.done():
            _, found, rest = self._output.partition(self._mark.encode())
            if not found or b"\n" not in rest:
                return
            self._output = rest.partition(b"\n")[2]
            self._began.set_result(None)
        # One answer may arrive in many parts, and several short answers in one part.
        while end := self._find_end():
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_result((int(end[1]), bytes(self._output[: end.start()])))
            del self._output[: end.end()]

    def _find_end(self) -> re.Match[bytes] | None:
        found = self._end.search(self._output, self._searched)
        self._searched = 0 if found else max(0, len(self._output) - len(self._mark) - _LONGEST_REST)
        return found

    def eof_received(self) -> bool:
        """Return False, so that asyncssh closes the SSH channel, because the shell has ended."""
        return False

    def pause_writing(self) -> None:
        """Do nothing, because scripts are short."""

    def resume_writing(self) -> None:
        """Do nothing, because :meth:`pause_writing` does nothing."""

    def xon_xoff_requested(self, _client_can_do: bool) -> None:
        """Do nothing, because the SSH session has no terminal."""

    def exit_status_received(self, status: int) -> None:
        """Store the exit code of the remote account's shell, for an error message."""
        self._exit_code = status

    def exit_signal_received(self, name: str, *_: Any) -> None:
        """Do nothing, because :meth:`connection_lost` is called too."""

    def connection_lost(self, error: Exception | None) -> None:
        """Fail all scripts that have no answer, because the shell has ended or the SSH connection was lost."""
        self.is_closed = True
        if not self._began.done():
            printed = bytes(self._errors + self._output)[-ERRORS_KEPT:].decode(errors="replace")
            self._began.set_exception(error or not_started_error(self._name, "", self._exit_code, printed))
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(self._lost_error(error))
                # Mark the exception as retrieved. Otherwise asyncio would warn if the caller has stopped waiting.
                answer.exception()
