"""ASGI apps, each served by uvicorn in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from real_airflow.ports import free_port

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


@contextmanager
def served(
    factory: str, environment: Mapping[str, str], *, output: Path, core: int | None = None
) -> Iterator[int]:
    """Serve an app meanwhile, and return its port on this machine.

    :param factory: ``module:function`` that returns the app.
    :param environment: on top of this process's.
    :param output: the file that the server's output is appended to.
    :param core: the only core on which it may run; None for any.
    """
    port = free_port()
    options = ["--factory", factory, "--port", str(port), "--no-access-log", "--log-level", "warning"]
    with output.open("ab") as written:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "uvicorn", *options],
            env={**os.environ, **environment},
            stdout=written,
            stderr=written,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
        )
    try:
        _wait_for(port, server, output)
        yield port
    finally:
        server.terminate()
        try:
            server.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes], output: Path) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up_at:
        if server.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the server did not start:\n{output.read_text()[-4000:]}")
