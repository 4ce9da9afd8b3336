"""Real supervisords, each with programs that run and go on running."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xmlrpc.client import ServerProxy

from deferrable_ops.supervisord import SupervisorAirflowConfiguration

_STARTED_SECONDS = 60.0
_RUNNING = 20


class Daemons:
    """Supervisords on this host, each with a Unix socket and a port."""

    def __init__(self, configs: list[SupervisorAirflowConfiguration]) -> None:
        self.configs = configs
        self.urls = [f"http://{config.airflow.port}/RPC2" for config in configs]
        self._proxies = [ServerProxy(url) for url in self.urls]

    def calls(self) -> int:
        """Return how many calls all of them were asked."""
        return sum(int(str(proxy.supervisor.countCalls())) for proxy in self._proxies)

    def wait(self) -> None:
        """Wait until all programs run."""
        give_up_at = time.monotonic() + _STARTED_SECONDS
        for proxy in self._proxies:
            while not self._all_run(proxy):
                if time.monotonic() > give_up_at:
                    raise RuntimeError("the programs of a supervisord do not run")
                time.sleep(0.1)

    def _all_run(self, proxy: ServerProxy) -> bool:
        try:
            found = proxy.supervisor.getAllProcessInfo()
        except OSError:
            return False
        assert isinstance(found, list)
        return all(process["state"] == _RUNNING for process in found)


@contextmanager
def running(count: int, programs: int, interval: float, output: Path) -> Iterator[Daemons]:
    """Run supervisords.

    :param interval: seconds between two looks at their programs.
    :param output: the file that they write to.
    """
    with ExitStack() as stack:
        # A socket's path has to be short.
        folder = Path(tempfile.mkdtemp(prefix="bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        configs = [_config(folder / str(number), programs, interval) for number in range(count)]
        for config in configs:
            _start(config, output, stack)
        daemons = Daemons(configs)
        daemons.wait()
        yield daemons


def _config(folder: Path, programs: int, interval: float) -> SupervisorAirflowConfiguration:
    sleeping = {"command": "/bin/sleep 86400", "autostart": True}
    return SupervisorAirflowConfiguration(
        working_dir=folder,
        port=f"127.0.0.1:{_free_port()}",
        rpcinterface_factory="bench.supervisor.counting:make_interface",
        check_interval=interval,
        program={f"worker-{number}": sleeping for number in range(programs)},
    )


def _start(config: SupervisorAirflowConfiguration, output: Path, stack: ExitStack) -> None:
    for directory in config.directories:
        directory.mkdir(mode=0o700, parents=True)
    config.config_path.write_text(config.to_cfg())
    with output.open("ab") as written:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "supervisor.supervisord", "-n", "-c", str(config.config_path)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=written,
            stderr=written,
        )
    stack.callback(process.wait)
    stack.callback(process.terminate)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
