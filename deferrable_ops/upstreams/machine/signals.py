"""Finds signals by their names. This module also finds the command line of a process with ``ps``, on the local host and
on machines over SSH.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deferrable_ops.exceptions import InputError

if TYPE_CHECKING:
    from deferrable_ops.upstreams.machine.machine import Machine

NO_PROGRAM: Final = 127
"""A shell exits with this code if it cannot find the program."""

NOT_RUNNABLE: Final = 126
"""A shell exits with this code if it is not permitted to run the program."""

PROC: Final = Path("/proc/self/cmdline")
"""This path exists if the operating system provides ``/proc``."""

_PS_SECONDS: Final = 10.0


def signal_of(name: str) -> signal.Signals:
    """Return the signal that has this name, such as TERM or KILL.

    :raises InputError: if no signal has this name.
    """
    try:
        return signal.Signals[f"SIG{name.removeprefix('SIG')}"]
    except KeyError:
        raise InputError(f"{name!r} is not a signal; give TERM, INT, HUP, QUIT or KILL") from None


async def command_by_ps(machine: Machine, pid: int) -> tuple[str, ...] | None:
    """Return the command line of a process, read from ``ps`` and split at the spaces. Return None if the process does
    not exist.
    """
    ended = await machine.run(
        ["ps", "-ww", "-o", "stat=", "-o", "args=", "-p", str(pid)], timeout=_PS_SECONDS
    )
    state, *command = ended.output.split() or [""]
    return tuple(command) if ended.code == 0 and not state.startswith("Z") else None
