"""The processes of a supervisord, found on its machine without its help: it may be dead, or not answer.

The daemon is known by its command line, which names the configuration's file. What its programs started is known by a
variable of its environment, which they inherit, by SUPERVISOR_SERVER_URL, which supervisord gives to each of them
unless it is told another, and by the daemon's session. A pid file is never believed: it may be old, and its number
another program's.
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from os.path import normpath
from pathlib import PurePath
from typing import Final

from deferrable_ops.triggers.supervisor.host import POLL_SECONDS, StepFailed, SupervisorHost
from deferrable_ops.upstreams.machine.machine import CommandResult

LOCKED: Final = 75
"""The exit code of a script that another process's lock stops."""
NO_FLOCK: Final = 77
_NO_PROC: Final = 78
_NO_GREP: Final = 79

TAKE_LOCK: Final = f"""command -v flock >/dev/null || exit {NO_FLOCK}
exec 3>>"$1" || exit 76
flock -n 3 || exit {LOCKED}
shift
"""
"""What the script begins with that starts a supervisord. Its first argument is the lock's file; it holds the lock to
its end, and so does the daemon that it becomes."""

KEEP_LOCK: Final = f"""command -v flock >/dev/null || exit {NO_FLOCK}
if command exec 3<"$1"; then flock -n 3 || exit {LOCKED}; fi 2>/dev/null
shift
"""
"""The same for scripts that must not run beside a supervisord. Where there is no such file none was started, and it is
not made: the directory may be about to go."""

# Prints the processes of this pid namespace whose file holds what is looked for, and sends them a signal, if any.
_FIND: Final = f"""grep -qz '' /dev/null
[ $? -gt 1 ] && exit {_NO_GREP}
[ -e /proc/self/ns/pid ] || exit {_NO_PROC}
for found in $(grep "-ls$1" -e "$2" /proc/[0-9]*/"$3"); do
  process=${{found%/*}}
  pid=${{process#/proc/}}
  [ "$pid" = "$$" ] && continue
  [ "$process/ns/pid" -ef /proc/self/ns/pid ] || continue
  echo "$pid"
  [ -z "$4" ] || kill -s "$4" "$pid"
done 2>/dev/null
exit 0
"""


async def find_daemons(host: SupervisorHost) -> list[int]:
    """Return the pids of the supervisords that run with this configuration's file, or are about to: mostly one."""
    config = str(host.cfg.config_path)
    found = []
    for pid in await _find(host, "zxF", config, "cmdline") or ():
        command = await host.machine.command_of(pid)
        if command is not None and _is_daemon(command, config):
            found.append(pid)
    return found


async def is_daemon(host: SupervisorHost, pid: int) -> bool:
    """Return whether this process is a supervisord that runs with this configuration's file."""
    command = await host.machine.command_of(pid)
    return command is not None and _is_daemon(command, str(host.cfg.config_path))


async def signal_daemons(host: SupervisorHost, signal: str) -> list[int]:
    """Send them a signal, each as soon as its command line was read; return their pids."""
    config = str(host.cfg.config_path)
    reached = []
    for pid in await find_daemons(host):
        command = await host.machine.command_of(pid)
        if command is not None and _is_daemon(command, config) and await host.machine.signal(pid, signal):
            reached.append(pid)
    return reached


async def end_orphans(host: SupervisorHost, *, sessions: tuple[int, ...] = (), grace: float) -> list[int]:
    """End what a supervisord that is gone has left running; return the pids. While one runs, nothing is done.

    :param sessions: the pids that its daemons had.
    :param grace: seconds between SIGTERM and SIGKILL; 0: they are killed at once.
    """
    ended: set[int] = set()
    kill_at = time.monotonic() + grace
    signal = "TERM" if grace > 0 else "KILL"
    while (found := await _left_over(host, sessions, signal)) != set():
        if (
            found is None
        ):  # somebody holds the lock: a daemon, or for a moment another step, or one that just ended
            if await find_daemons(host):
                break
        else:
            if not ended:
                host.log.warning(
                    "supervisord is gone, and %d processes of its programs are left: they are ended",
                    len(found),
                )
            ended.update(found)
            signal = "KILL" if time.monotonic() >= kill_at else ""
        await asyncio.sleep(POLL_SECONDS / 5)
    return sorted(ended)


async def run_without_daemon(host: SupervisorHost, script: str, *arguments: str) -> CommandResult | None:
    """Run a script that begins with ``KEEP_LOCK``; return what came of it, None where a supervisord runs.

    Another step holds the lock for a moment, as a force-kill does beside a teardown: it is waited for.
    """
    command = ["sh", "-c", script, "sh", str(host.lock), *arguments]
    while True:
        await host.check()
        ended = await host.machine.run(command, timeout=host.cfg.airflow.command_timeout)
        if ended.code != LOCKED:
            return ended
        if await find_daemons(host):
            return None
        await asyncio.sleep(POLL_SECONDS / 5)


async def wait_until_gone(host: SupervisorHost, pids: list[int], seconds: float) -> bool:
    """Return whether these processes have ended, for which it waits at most so long."""
    give_up_at = time.monotonic() + seconds
    before = {pid: await host.machine.command_of(pid) for pid in pids}
    for pid, command in before.items():
        while command is not None and await host.machine.command_of(pid) == command:
            if time.monotonic() >= give_up_at:
                return False
            await asyncio.sleep(POLL_SECONDS / 5)
    return True


async def _left_over(host: SupervisorHost, sessions: tuple[int, ...], signal: str) -> set[int] | None:
    """Return what is left, to each of which a signal was sent; None when somebody holds the lock."""
    # proc(5): pid (command) state ppid pgrp session; a zombie is left to whoever is its parent now.
    asked = [("zxF", mark, "environ") for mark in (mark_of(host), _server_url(host))]
    asked += [("", rf"^[0-9]* (.*) [^ZX] [0-9]* [0-9]* {session} ", "stat") for session in sessions]
    left: set[int] = set()
    for how, pattern, file in asked:
        found = await _find(host, how, pattern, file, signal, locked=True)
        if found is None:
            return None
        left.update(found)
    return left


async def _find(
    host: SupervisorHost, how: str, pattern: str, file: str, signal: str = "", *, locked: bool = False
) -> list[int] | None:
    """Return the processes of which a file in /proc holds a pattern; None when the lock is needed, and not free.

    :param how: grep's options.
    :param signal: sent to each of them.
    :param locked: only while nobody holds the lock.
    """
    script, arguments = _FIND, [how, pattern, file, signal]
    if locked:
        script, arguments = KEEP_LOCK + _FIND, [str(host.lock), *arguments]
    ended = await host.machine.run(
        ["sh", "-c", script, "sh", *arguments], timeout=host.cfg.airflow.command_timeout
    )
    if ended.code == LOCKED:
        return None
    if ended.code != 0:
        raise StepFailed(f"processes cannot be looked for on {host.machine.name}: {_why(ended.code)}")
    return [int(line) for line in ended.output.split() if line.isdigit()]


def mark_of(host: SupervisorHost) -> str:
    """Return the variable of a daemon's environment by which all that it starts is known."""
    return f"DEFERRABLE_OPS_SUPERVISORD={normpath(host.cfg.socket_path)}"


def _server_url(host: SupervisorHost) -> str:
    # As supervisord writes it, see its options.py: also one that a user has started by hand.
    return f"SUPERVISOR_SERVER_URL=unix://{normpath(host.cfg.socket_path)}"


def _why(code: int) -> str:
    known = {
        NO_FLOCK: "flock is missing; install util-linux there",
        _NO_PROC: "there is no /proc",
        _NO_GREP: "grep does not know -z; install GNU grep there",
    }
    return known.get(code, f"sh ended with {code}")


def _is_daemon(command: tuple[str, ...], config: str) -> bool:
    named = any(first == "-c" and second == config for first, second in pairwise(command))
    return named and any(
        part == "supervisor.supervisord" or PurePath(part).name == "supervisord" for part in command
    )
