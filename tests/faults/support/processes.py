"""The processes of the library, started as an operator starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from real_airflow import RealAirflow, announce_airflow, wait_until
from real_airflow.ports import free_port

COMMAND = Path(sys.executable).with_name("deferrable-ops")


def environment(folder: Path, inbox_url: str) -> dict[str, str]:
    """Return the environment of a process that shares an inbox, without whatever Airflow this machine has."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))
    }
    return {**inherited, "AIRFLOW_HOME": str(folder), "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": inbox_url}


def restart_with(airflow: RealAirflow, settings: Mapping[str, str]) -> None:
    """Restart what opens the inbox, the API server and the triggerer, with other settings, until the test's end."""
    for component in (airflow.api_server, airflow.triggerer):
        component.kill()
        airflow.start_component(component, settings)


class ServedEndpoint:
    """One process `deferrable-ops serve`.

    :param folder: AIRFLOW_HOME, and where its output goes.
    :param inbox_url: of the inbox that it shares with others.
    :param extra_environment: added to its own, for example another machine's clock.
    """

    def __init__(
        self, folder: Path, inbox_url: str, extra_environment: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/deferrable-ops"
        self.output = folder / f"endpoint-{self.port}.out"
        announce_airflow(inbox_url)
        self._environment = {**environment(folder, inbox_url), **(extra_environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> ServedEndpoint:
        """Start it, and do not wait until it is ready."""
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [COMMAND, "serve", "--host", "127.0.0.1", "--port", str(self.port)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    def wait_until_ready(self) -> ServedEndpoint:
        """Wait until it answers."""
        wait_until(self._answers, f"{self} to answer", timeout=60)
        return self

    def kill(self) -> None:
        """Send SIGKILL to it and to whatever it started, and return when it is dead."""
        assert self._process is not None
        os.killpg(self._process.pid, 9)
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self} ended by itself:\n{self.output.read_text()}"
        try:
            # Refused by its form: no inbox is asked.
            return httpx.get(f"{self.url}/callbacks/none", trust_env=False).status_code == 401
        except httpx.TransportError:
            return False

    def __str__(self) -> str:
        return f"endpoint on port {self.port}"
