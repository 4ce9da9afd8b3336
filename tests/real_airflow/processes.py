"""One component of Airflow as a process of its own, to be started, stopped, killed and paused."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from real_airflow.waiting import wait_until

AIRFLOW = Path(sys.executable).with_name("airflow")


class Component:
    """A process `airflow NAME ...` with everything that it starts.

    :param name: for messages, and for the name of the file that keeps its output.
    :param arguments: of the command `airflow`.
    :param environment: the whole environment; `start` may add to it.
    :param folder: where it runs and where its output goes.

    `altered` tells that it was paused, or started with an environment of its own. `prefix` is a command that starts it,
    for example `ip netns exec NAME`, and that must replace itself by it.
    """

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.output = folder / f"{name}.out"
        self._arguments = arguments
        self._environment = environment
        self._folder = folder
        self._process: psutil.Popen | None = None
        self.altered = False
        self.prefix: list[str] = []

    @property
    def running(self) -> bool:
        """Whether its main process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The main process."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def start(self, extra_environment: Mapping[str, str] | None = None) -> None:
        """Start it, and do not wait until it is ready: `RealAirflow.start_component` does.

        :param extra_environment: for this start only, for example to run it under libfaketime.
        """
        assert not self.running, f"{self.name} runs already"
        self.altered = extra_environment is not None
        with self.output.open("ab") as output:
            self._process = psutil.Popen(
                [*self.prefix, AIRFLOW, *self._arguments],
                env={**self._environment, **(extra_environment or {})},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def stop(self, timeout: float = 30) -> None:
        """Stop it as an operator would, with SIGTERM; what is left after `timeout` seconds is killed."""
        if not self.running:
            return
        processes = self._tree()
        self.resume()
        with contextlib.suppress(psutil.NoSuchProcess):
            processes[0].terminate()
        with contextlib.suppress(AssertionError):
            wait_until(
                lambda: not any(map(_lives, processes)), f"the {self.name} to end", timeout, every=0.02
            )
        self._kill(processes)

    def kill(self) -> None:
        """Send SIGKILL to the whole tree, and return when none of it is left."""
        if self.running:
            self._signal(signal.SIGSTOP, self._tree())  # so that nothing of it starts another process
            self._kill(self._tree())

    def pause(self) -> None:
        """Send SIGSTOP to the whole tree."""
        self.altered = True
        self._signal(signal.SIGSTOP, self._tree())

    def resume(self) -> None:
        """Send SIGCONT to the whole tree."""
        # Children first: a parent that wakes before them may take them for dead.
        self._signal(signal.SIGCONT, reversed(self._tree()))

    def ports(self) -> list[int]:
        """Return the local ports of its TCP connections."""
        return [
            connection.laddr.port
            for process in self._tree()
            for connection in process.net_connections("tcp")
            if connection.laddr
        ]

    def waits_in(self) -> dict[int, str]:
        """Return the function of the kernel in which each of its processes waits, `0` for one that runs."""
        return {process.pid: Path(f"/proc/{process.pid}/wchan").read_text() for process in self._tree()}

    def tail(self, lines: int = 20, width: int = 300) -> str:
        """Return the end of its output, with long lines cut."""
        if not self.output.exists():
            return ""
        return "\n".join(
            line[:width] for line in self.output.read_text(errors="replace").splitlines()[-lines:]
        )

    def _tree(self) -> list[psutil.Process]:
        assert self._process is not None, f"{self.name} was never started"
        try:
            main = psutil.Process(self._process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _kill(self, processes: list[psutil.Process]) -> None:
        self._signal(signal.SIGKILL, processes)
        wait_until(
            # A main thread is a zombie before the others have ended, and until then the process counts as running.
            lambda: not self.running and not any(map(_lives, processes)),
            f"the {self.name} to be dead",
            timeout=60,
            every=0.02,
        )

    def _signal(self, number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
