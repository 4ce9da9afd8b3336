"""What all machines say of processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deferrable_ops.exceptions import InputError

if TYPE_CHECKING:
    from deferrable_ops.upstreams.machine.machine import Machine

NO_PROGRAM: Final = 127
"""The exit code of a shell that finds no such program."""

NOT_RUNNABLE: Final = 126
"""The exit code of a shell that may not run the program."""

PROC: Final = Path("/proc/self/cmdline")
"""There, where the kernel tells of processes in files."""

_PS_SECONDS: Final = 10.0


def signal_of(name: str) -> signal.Signals:
    """Return the signal of a name, as TERM or KILL.

    :raises InputError: there is none.
    """
    try:
        return signal.Signals[f"SIG{name.removeprefix('SIG')}"]
    except KeyError:
        raise InputError(f"{name!r} is no signal; write TERM, INT, HUP, QUIT or KILL") from None


async def command_by_ps(machine: Machine, pid: int) -> tuple[str, ...] | None:
    """Return a process's program and arguments, split at spaces, where there is no /proc; None: there is no process."""
    ended = await machine.run(
        ["ps", "-ww", "-o", "stat=", "-o", "args=", "-p", str(pid)], timeout=_PS_SECONDS
    )
    state, *command = ended.output.split() or [""]
    return tuple(command) if ended.code == 0 and not state.startswith("Z") else None
