"""`deferrable-ops serve` as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from real_airflow import wait_until
from real_airflow.ports import free_port


@dataclass
class Served:
    """A running endpoint.

    :ivar output: the file that it writes to.
    """

    process: subprocess.Popen[bytes]
    url: str
    output: Path

    def kill(self) -> None:
        """Kill it with all its processes, as a machine that loses its power does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def served(inbox_url: str, folder: Path, *options: str) -> Iterator[Served]:
    """Run `deferrable-ops serve` until the end, which it may have come to before."""
    port, output = free_port(), folder / "serve.out"
    command = [sys.executable, "-m", "deferrable_ops.cli", "serve", "--host", "127.0.0.1"]
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": inbox_url,
    }
    with output.open("wb") as written:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options],
            env=environment,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    endpoint = Served(process, f"http://127.0.0.1:{port}", output)
    try:
        wait_until(lambda: _answers(endpoint.url), f"the endpoint to answer; {output.read_text()}")
        yield endpoint
    finally:
        endpoint.kill()


@contextmanager
def serving(inbox_url: str, folder: Path, *options: str) -> Iterator[tuple[httpx.Client, Path]]:
    """Run `deferrable-ops serve`, and yield a client of it and the file that it writes to; it must end well."""
    with served(inbox_url, folder, *options) as endpoint:
        with httpx.Client(base_url=endpoint.url, timeout=30) as client:
            yield client, endpoint.output
        endpoint.process.terminate()
        assert endpoint.process.wait(30) in (0, -signal.SIGTERM), endpoint.output.read_text()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/openapi.json").status_code == 200
    except httpx.TransportError:
        return False
