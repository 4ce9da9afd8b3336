"""Prevents a triggerer's event loop from blocking while it writes log lines.

A triggerer has two processes: a parent process, and a child process in which the triggers run. The child process writes
log lines to a blocking socket, which the parent process reads slowly. The parent process sends workloads to the child
process with a blocking call. If the sockets in both directions are full, both processes block forever (airflow#65286,
docs/known-airflow-bugs.md). Airflow's own log lines block in the same way. So a buffer only for the log lines of this
library would not help.

:func:`install` replaces the file descriptors of the log, of stdout and of stderr by pipes. A thread copies whole lines
    from the pipes to the original sockets. This thread never blocks. The thread keeps a limited number of lines and of
    bytes in memory. If the parent process reads nothing for a long time, further log lines are dropped and counted.

Airflow closes the log of a task as soon as it knows that the task's trigger has ended. Lines that the parent process
reads after that are missing in the task's log. So a trigger calls :func:`until_read` before it ends, and copies the
output of programs only while :func:`room` returns a number above zero.
"""

from __future__ import annotations

import array
import asyncio
import atexit
import fcntl
import json
import logging
import os
import select
import socket
import stat
import sys
import termios
import threading
import time
from collections import deque
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from deferrable_ops import settings

log = logging.getLogger(__name__)

_MAX_LINES: Final = 50_000
_MAX_BYTES: Final = 16 * 1024 * 1024
_BATCH: Final = 4096
"""The largest number of bytes to send at once, unless one line is longer. The parent reads the same number."""
_READ: Final = 65536
_FLUSH_SECONDS: Final = 2.0
# The parent reads about 100 kB of log lines per second on a busy machine, so lines are at most about 3 s late.
_MAX_UNREAD: Final = 256 * 1024
# The parent reads these bytes before it learns that a trigger has ended.
_READ_IN_TIME: Final = 16 * 1024
_RECHECK_SECONDS: Final = 0.2

_log_pipes: Final[list[LogPipe]] = []
"""The pipe of Airflow's log; empty if this process keeps its descriptors."""


@cache
def install() -> str | None:
    """Replace the log descriptors of this process by pipes. Return the reason if this process must keep its
    descriptors, otherwise return None.

    Nothing is changed if this process is not a triggerer, or if this release of Airflow writes its log in another way
    than the tested releases.
    """
    found = _log_descriptor()
    if isinstance(found, str):
        return found
    pipes = [LogPipe(descriptor, as_json=descriptor == found) for descriptor in (found, 1, 2)]
    for pipe in pipes:
        atexit.register(pipe.flush, _FLUSH_SECONDS)
    _log_pipes.append(pipes[0])
    return None


def room() -> int:
    """Return how many bytes of log lines may be written now without a delay of the logs of all tasks."""
    return min((max(0, _MAX_UNREAD - pipe.unread()) for pipe in _log_pipes), default=sys.maxsize)


async def until_read(seconds: float) -> None:
    """Wait until the parent process has read the log lines that this process has written so far.

    :param seconds: the longest time to wait.
    """
    ends_at = time.monotonic() + seconds
    for pipe in _log_pipes:
        wanted = pipe.written() - _READ_IN_TIME
        while pipe.written() - pipe.unread() < wanted and time.monotonic() < ends_at:
            await asyncio.sleep(_RECHECK_SECONDS)


class LogPipe:
    """A pipe that replaces a file descriptor, and a thread that copies lines from the pipe to the original socket.

    :param descriptor: the file descriptor that is replaced by the pipe; it must be a stream socket.
    :param as_json: whether each line is a JSON log line of Airflow.
    :param max_lines: the maximum number of log lines in memory; further lines are dropped. The number is limited,
        because each line costs time in the parent process, and needs more memory than its bytes.
    :param max_bytes: the maximum number of bytes of all lines in memory together. The bytes of a single line are
        limited by the same number.
    """

    def __init__(
        self, descriptor: int, *, as_json: bool, max_lines: int = _MAX_LINES, max_bytes: int = _MAX_BYTES
    ) -> None:
        self._as_json = as_json
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._target = socket.socket(fileno=os.dup(descriptor))
        self._source, written = socket.socketpair()
        os.dup2(written.fileno(), descriptor, inheritable=os.get_inheritable(descriptor))
        written.close()
        # Held while bytes move from the pipe into memory, so that they are counted exactly once.
        self._taking = threading.Lock()
        self._taken = 0
        self._lines: deque[bytes] = deque()
        self._buffered = 0
        # The beginning of a line whose end is not read yet. If it is too long, the rest of the line is skipped.
        self._rest = b""
        self._skips_line = False
        self._unsent = b""
        self._dropped = 0
        threading.Thread(target=self._run, name="deferrable-ops log", daemon=True).start()

    def flush(self, seconds: float) -> None:
        """Wait until all lines are copied to the socket, but at most for the given number of seconds."""
        ends_at = time.monotonic() + seconds
        while not self._is_empty() and time.monotonic() < ends_at:
            time.sleep(0.01)

    def written(self) -> int:
        """Return the number of bytes that this process has written so far."""
        with self._taking:
            return self._taken + _queued(self._source, termios.FIONREAD)

    def unread(self) -> int:
        """Return approximately how many written bytes the parent process has not read yet."""
        with self._taking:
            in_memory = len(self._rest) + self._buffered + len(self._unsent)
            return (
                _queued(self._source, termios.FIONREAD) + in_memory + _queued(self._target, termios.TIOCOUTQ)
            )

    def _is_empty(self) -> bool:
        return not (self._lines or self._unsent or self._dropped or _polled(self._source, select.POLLIN, 0))

    def _run(self) -> None:
        # poll() is used because select() accepts no descriptor above 1,023, and a triggerer may have higher
        # descriptors.
        while True:
            to_send = bool(self._lines or self._unsent or self._dropped)
            poller = select.poll()
            poller.register(self._source, select.POLLIN)
            if to_send:
                poller.register(self._target, select.POLLOUT)
            ready = {descriptor for descriptor, _ in poller.poll()}
            if self._source.fileno() in ready:
                with self._taking:
                    self._take()
            if self._target.fileno() in ready:
                self._send()

    def _take(self) -> None:
        data = self._source.recv(_READ)
        self._taken += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines and self._skips_line:
            del lines[0]
            self._skips_line = False
        for line in lines:
            if len(self._lines) >= self._max_lines or self._buffered + len(line) >= self._max_bytes:
                self._dropped += 1
            else:
                self._lines.append(line + b"\n")
                self._buffered += len(line) + 1
        if self._skips_line:
            self._rest = b""
        elif len(self._rest) >= self._max_bytes:
            self._dropped += 1
            self._skips_line = True
            self._rest = b""

    def _send(self) -> None:
        """Send a batch of whole lines, or the rest of a batch that was sent only in part."""
        if not self._unsent:
            if not self._lines and self._dropped:
                self._lines.append(self._notice())
                self._buffered += len(self._lines[0])
                self._dropped = 0
            size, batch = 0, list[bytes]()
            while self._lines and (not batch or size + len(self._lines[0]) <= _BATCH):
                size += len(self._lines[0])
                batch.append(self._lines.popleft())
            self._unsent = b"".join(batch)
            self._buffered -= size
        try:
            sent = self._target.send(self._unsent, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            # The parent has ended. Lines are still read from the pipe, so that no writer blocks.
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]

    def _notice(self) -> bytes:
        text = f"{self._dropped:,} log lines were dropped, because the triggerer's parent process read too slowly"
        if not self._as_json:
            return text.encode() + b"\n"
        line = {
            "timestamp": datetime.now(UTC).isoformat(),
            "level": "warning",
            "logger": __name__,
            "event": text,
        }
        return json.dumps(line).encode() + b"\n"


def _log_descriptor() -> int | str:
    """Return the file descriptor of Airflow's log socket, or the reason why it cannot be replaced by a pipe."""
    import structlog
    from airflow.sdk.execution_time import task_runner

    if not settings.protect_log():
        return "[deferrable_ops] protect_log = False"
    comms: Any = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if type(comms).__name__ != "TriggerCommsDecoder":
        return "this process is not a triggerer"
    output = getattr(structlog.get_config()["logger_factory"], "io", None)
    try:
        descriptors = [output.fileno(), 1, 2]  # type: ignore[union-attr]
        if not all(stat.S_ISSOCK(os.fstat(descriptor).st_mode) for descriptor in descriptors):
            return "the triggerer's log is not a socket, but the tested Airflow releases use a socket"
    except (AttributeError, OSError, ValueError):
        return "the triggerer's log has no file descriptor, but in the tested Airflow releases it has one"
    return int(descriptors[0])


def _queued(one: socket.socket, request: int) -> int:
    """Return how many bytes are in the receive queue (FIONREAD) or in the send queue (TIOCOUTQ) of a socket."""
    size = array.array("i", [0])
    fcntl.ioctl(one, request, size)
    return size[0]


def _polled(one: socket.socket, event: int, milliseconds: int) -> bool:
    poller = select.poll()
    poller.register(one, event)
    return bool(poller.poll(milliseconds))
