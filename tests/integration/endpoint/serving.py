"""Runs `deferrable-ops serve` as a process."""

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

from real_airflow import announce_airflow, wait_until
from real_airflow.ports import free_port


@dataclass
class Served:
    """A running endpoint.

    :ivar output: the file with its output.
    """

    process: subprocess.Popen[bytes]
    url: str
    output: Path

    def kill(self) -> None:
        """Kill all of its processes at once, as a power failure does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def served(inbox_url: str, folder: Path, *options: str) -> Iterator[Served]:
    """Run `deferrable-ops serve` for the duration of the block; the block may kill it earlier."""
    announce_airflow(inbox_url)
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
    """Run `deferrable-ops serve`, and yield a client and the file with its output; it must exit without an error."""
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
