"""Child processes that do what the bench asks of them, one thing at a time."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

_CONNECTION = "BENCH_CONNECTION"
_STOP_SECONDS = 10.0


class Child:
    """A process that runs a module's :func:`serve`.

    :param module: what ``python -m`` runs.
    :param environment: on top of this process's.
    :param output: the file that its output is appended to.
    :param core: the only core on which it may run; None for any.
    """

    def __init__(
        self, module: str, environment: Mapping[str, str], *, output: Path, core: int | None = None
    ) -> None:
        ours, theirs = socket.socketpair()
        with output.open("ab") as written:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                env={**os.environ, **environment, _CONNECTION: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdout=written,
                stderr=written,
                preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
            )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._output = output
        self._answer()  # once it is ready

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, name: str, *arguments: Any) -> Any:
        """Return what the child's service returns when this method of it is called."""
        self.tell(name, *arguments)
        return self._answer()

    def tell(self, name: str, *arguments: Any) -> None:
        """Call a method of the child's service; :meth:`answer` returns what it returns."""
        self._connection.send((name, arguments))

    def answer(self) -> Any:
        """Return the answer to the call before."""
        return self._answer()

    def _answer(self) -> Any:
        try:
            ended_well, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            ended_well, value = False, f"the process ended with {self._process.wait()}"
        if not ended_well:
            raise RuntimeError(f"{value}\n{self._output.read_text()[-4000:]}")
        return value


def serve(
    service: Callable[[], AbstractAsyncContextManager[object]],
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Call the methods of a service as the parent process asks, until it has enough of it.

    :param loop: makes the event loop; None takes asyncio's own.
    """
    connection = Connection(int(os.environ[_CONNECTION]))
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_serve(service, connection))


async def _serve(service: Callable[[], AbstractAsyncContextManager[object]], connection: Connection) -> None:
    async with service() as methods:
        connection.send((True, None))
        while True:
            try:
                name, arguments = await asyncio.to_thread(connection.recv)
            except (EOFError, ConnectionResetError):
                os._exit(
                    0
                )  # what it holds is thrown away, and 10,000 tasks would take their time to be cancelled
            try:
                connection.send((True, await getattr(methods, name)(*arguments)))
            except Exception as error:
                connection.send((False, f"{name} failed: {type(error).__name__}: {error}"))
