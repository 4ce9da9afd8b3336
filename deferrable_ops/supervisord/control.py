"""Manages a supervisord from its configuration, outside of a DAG.

This layer only declares the operations. The layer ``triggers`` implements and registers them.
"""

from __future__ import annotations

from typing import Any, Protocol

from deferrable_ops.exceptions import ConfigurationError


class DaemonControl(Protocol):
    """The operations on the supervisord of a configuration. Each operation waits until it is done."""

    def write(self, cfg: Any) -> bool:
        """Create the directories and the configuration file. Return whether the file has changed."""
        ...

    def start(self, cfg: Any) -> int:
        """Start supervisord, or use a running supervisord. Return its pid."""
        ...

    def is_running(self, cfg: Any) -> bool:
        """Return whether a process of supervisord runs with this configuration file."""
        ...

    def stop(self, cfg: Any) -> list[int]:
        """Stop the programs and supervisord. Return the pids of the stopped supervisords."""
        ...

    def kill(self, cfg: Any) -> list[int]:
        """Kill supervisord and its programs. Return the pids of the killed processes."""
        ...

    def remove(self, cfg: Any) -> list[str]:
        """Remove supervisord's files. Return the paths of the removed directories."""
        ...


_registered: list[DaemonControl] = []


def register(control: DaemonControl) -> None:
    """Set the object that carries out the operations for all configurations in this Python process."""
    _registered[:] = [control]


class ControlledDaemon:
    """Methods with which a script or a notebook starts, stops and removes the supervisord of a configuration.

    The tasks of a Supervisor do the same operations. Therefore a DAG with the same configuration uses the supervisord
    that ``start()`` has started. With an SSH configuration, the operations run on the remote machine.

    Each operation raises MachineError if the machine cannot be reached, and StepFailed if the operation failed.
    """

    def write(self) -> bool:
        """Create the directories and supervisord's configuration file. Return whether the file has changed.

        A running supervisord keeps its configuration until it is stopped and started again.
        """
        return _control().write(self)

    def start(self, daemon: bool = True) -> int:
        """Start supervisord, or use the supervisord that runs already. Return its pid. Call :meth:`write` first.

        :param daemon: ignored, because supervisord always runs as a daemon. airflow-supervisor has this parameter.
        """
        return _control().start(self)

    def running(self) -> bool:
        """Return whether supervisord runs, even if it does not answer."""
        return _control().is_running(self)

    def stop(self) -> list[int]:
        """Stop the programs and supervisord, and wait until they have ended. Return the pids of the stopped
        supervisords; an empty list if none was running.
        """
        return _control().stop(self)

    def kill(self) -> list[int]:
        """Kill supervisord and all processes of its programs at once. Return the pids of the killed processes."""
        return _control().kill(self)

    def rmdir(self) -> list[str]:
        """Remove supervisord's files. Return the paths of the removed directories.

        A directory with other files is kept, unless :meth:`write` has created this directory or found it empty.

        :raises StepFailed: if supervisord is still running.
        """
        return _control().remove(self)


def _control() -> DaemonControl:
    if not _registered:
        raise ConfigurationError(
            "this process cannot manage a supervisord yet; import the configuration from "
            "deferrable_ops.operators.supervisor"
        )
    return _registered[0]
