"""The processes that the figures are measured in."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psutil
from cryptography.fernet import Fernet

from bench.common.command import Setting
from bench.common.processes import Child
from bench.common.rivals import import_path

_SAMPLE_SECONDS: Final = 0.02
_FERNET_KEY = Fernet.generate_key().decode()


def triggerer(setting: Setting, connections: dict[str, str], inbox_url: str) -> Child:
    """Start a process that runs our triggers; see :mod:`bench.events.triggerer`."""
    environment = {**connections, "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": inbox_url}
    return _child(setting, environment)


def rival_triggerer(setting: Setting, connections: dict[str, str]) -> Child:
    """Start a process that runs the rivals' triggers."""
    return _child(setting, {**connections, "PYTHONPATH": import_path("events")})


def kafka_connection(servers: str, **settings: str) -> dict[str, str]:
    """Return the environment in which Airflow's connection ``kafka_default`` is this cluster.

    :param settings: of its clients, with underscores for dots.
    """
    extra = {
        "bootstrap.servers": servers,
        **{name.replace("_", "."): value for name, value in settings.items()},
    }
    return {"AIRFLOW_CONN_KAFKA_DEFAULT": json.dumps({"conn_type": "kafka", "extra": extra})}


class Watched:
    """What the machine knows of a process, which costs that process nothing."""

    def __init__(self, process: Child) -> None:
        self._process = psutil.Process(process.ask("pid"))

    def threads(self) -> int:
        """Return how many threads it has."""
        return self._process.num_threads()

    def connections(self, port: int) -> int:
        """Return how many connections it has to a port of this machine."""
        found = self._process.net_connections("tcp")
        return sum(1 for one in found if one.status == "ESTABLISHED" and one.raddr and one.raddr.port == port)

    @contextmanager
    def most_connections(self, port: int) -> Iterator[Callable[[], int]]:
        """Count them meanwhile, and return what returns the most of them at any time."""
        counts, ended = [0], threading.Event()

        def count() -> None:
            while not ended.wait(_SAMPLE_SECONDS):
                counts.append(self.connections(port))

        thread = threading.Thread(target=count)
        thread.start()
        try:
            yield lambda: max(counts)
        finally:
            ended.set()
            thread.join()


def _child(setting: Setting, environment: dict[str, str]) -> Child:
    # Airflow's examples install a listener, for which a task would end on a worker.
    common = {
        "AIRFLOW__CORE__FERNET_KEY": _FERNET_KEY,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    return Child("bench.events.triggerer", {**common, **environment}, output=setting.output)
