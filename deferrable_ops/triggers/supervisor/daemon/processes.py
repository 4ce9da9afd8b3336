"""Finds the processes of a supervisord on its machine. The search needs no response from supervisord, so it also finds
a supervisord that hangs.

A process is a supervisord of this library if its command line contains the path of the configuration file. A process of
one of supervisord's programs is identified by one of three properties: an environment variable that this library sets,
the environment variable SUPERVISOR_SERVER_URL that supervisord sets by default, or the session id of supervisord. Pid
files are not used, because the pid in an old pid file may now belong to another process.
"""

from __future__ import annotations

import asyncio
import re
import time
from itertools import pairwise
from os.path import normpath
from pathlib import PurePath
from typing import Final

from deferrable_ops.triggers.supervisor.host import StepFailed, SupervisorHost
from deferrable_ops.upstreams.machine.machine import CommandResult

LOCKED: Final = 75
"""Exit code of a script that cannot take the lock, because another process holds the lock."""

NO_FLOCK: Final = 77
"""Exit code of a script that needs flock, if flock is not installed or does not work."""

_NO_PROC: Final = 78
_NO_GREP: Final = 79
# The characters that are special in a basic regular expression.
_SPECIAL: Final = re.compile(r"[\\.\[*^$]")

TAKE_LOCK: Final = f"""command -v flock >/dev/null || exit {NO_FLOCK}
exec 3>>"$1" || exit 76
flock -n 3 || exit $(($? == 1 ? {LOCKED} : {NO_FLOCK}))
shift
"""
"""The first lines of the script that starts supervisord. The script's first argument is the path of the lock file. The
script takes the lock. supervisord keeps the lock, because the script's process becomes supervisord."""

KEEP_LOCK: Final = f"""command -v flock >/dev/null || exit {NO_FLOCK}
if command exec 3<"$1"; then flock -n 3 || exit $(($? == 1 ? {LOCKED} : {NO_FLOCK})); fi 2>/dev/null
shift
"""
"""The first lines of a script that must not run while supervisord runs. If the lock file is missing, no supervisord was
started. The script does not create the lock file, because another step may be removing the directory."""

# A script that prints the pids of processes and can send them a signal. It finds the processes of this pid namespace
# whose file in /proc contains a pattern. If a text is given too, it must be one whole entry of the file, such as an
# argument in cmdline. The entries end with null characters, so the script swaps null characters and line breaks: not
# every grep has an option for null characters. The first grep only reduces the number of files; it has no option -F,
# because grep -F of busybox ignores what follows a null character.
_FIND: Final = f"""LC_ALL=C; export LC_ALL
for tool in grep tr; do command -v "$tool" >/dev/null || exit {_NO_GREP}; done
[ -e /proc/self/ns/pid ] || exit {_NO_PROC}
for found in $(grep -ls -e "$1" /proc/[0-9]*/"$3"); do
  process=${{found%/*}}
  pid=${{process#/proc/}}
  [ "$pid" = "$$" ] && continue
  [ "$process/ns/pid" -ef /proc/self/ns/pid ] || continue
  [ -z "$2" ] || tr '\\n\\000' '\\001\\n' <"$found" | grep -qxF -e "$2" || continue
  echo "$pid"
  [ -z "$4" ] || kill -s "$4" "$pid"
done 2>/dev/null
exit 0
"""


async def find_daemons(host: SupervisorHost) -> list[int]:
    """Return the pids of all supervisords that run with this configuration file. Usually, there is one pid or none."""
    config = str(host.cfg.config_path)
    found = []
    for pid in await _find(host, *_whole(config), "cmdline") or ():
        command = await host.machine.command_of(pid)
        if command is not None and _is_daemon_command(command, config):
            found.append(pid)
    return found


async def is_daemon(host: SupervisorHost, pid: int) -> bool:
    """Return whether the process with this pid is a supervisord that runs with this configuration file."""
    command = await host.machine.command_of(pid)
    return command is not None and _is_daemon_command(command, str(host.cfg.config_path))


async def signal_daemons(host: SupervisorHost, signal: str) -> list[int]:
    """Send a signal to each supervisord that runs with this configuration file, and return the pids of the processes
    that received the signal.

    Immediately before the signal is sent, the command line of the process is checked again, because its pid may now
    belong to another process.
    """
    config = str(host.cfg.config_path)
    reached = []
    for pid in await find_daemons(host):
        command = await host.machine.command_of(pid)
        if (
            command is not None
            and _is_daemon_command(command, config)
            and await host.machine.signal(pid, signal)
        ):
            reached.append(pid)
    return reached


async def end_orphans(host: SupervisorHost, *, sessions: tuple[int, ...] = (), grace: float) -> list[int]:
    """If supervisord has ended, end the processes of its programs that are still running, and return their pids.

    If supervisord is running, no process is ended.

    :param sessions: pids of supervisords that have ended. Each pid is also the session id of the processes that this
        supervisord started.
    :param grace: number of seconds between SIGTERM and SIGKILL; with 0, the processes receive SIGKILL at once.
    """
    ended: set[int] = set()
    kill_at = time.monotonic() + grace
    signal = "TERM" if grace > 0 else "KILL"
    while (found := await _find_orphans(host, sessions, signal)) != set():
        if found is None:
            # Either a supervisord holds the lock, or another step or an ending process holds it for a short time.
            if await find_daemons(host):
                break
        else:
            if not ended:
                host.log.warning(
                    "supervisord has ended; ending %d leftover processes of its programs", len(found)
                )
            ended.update(found)
            signal = "KILL" if time.monotonic() >= kill_at else ""
        await asyncio.sleep(host.timings.search_interval)
    return sorted(ended)


async def run_without_daemon(host: SupervisorHost, script: str, *arguments: str) -> CommandResult | None:
    """Run a shell script while no supervisord is running, and return the script's result. If a supervisord is running,
    return None.

    The script must begin with the text ``KEEP_LOCK``, whose commands lock the lock file. If another step has locked the
    lock file, this function waits until the file is unlocked.
    """
    command = ["sh", "-c", script, "sh", str(host.lock), *arguments]
    while True:
        await host.check_claim()
        result = await host.machine.run(command, timeout=host.cfg.airflow.command_timeout)
        if result.code != LOCKED:
            return result
        if await find_daemons(host):
            return None
        await asyncio.sleep(host.timings.search_interval)


async def wait_until_gone(host: SupervisorHost, pids: list[int], timeout: float) -> bool:
    """Wait until all processes with the given pids have ended, and return True.

    Return False if one of these processes is still running after `timeout` seconds.
    """
    give_up_at = time.monotonic() + timeout
    before = {pid: await host.machine.command_of(pid) for pid in pids}
    for pid, command in before.items():
        while command is not None and await host.machine.command_of(pid) == command:
            if time.monotonic() >= give_up_at:
                return False
            await asyncio.sleep(host.timings.search_interval)
    return True


def environment_marker(host: SupervisorHost) -> str:
    """Return the text ``NAME=value`` of an environment variable that all processes of this supervisord have."""
    return f"DEFERRABLE_OPS_SUPERVISORD={normpath(host.cfg.socket_path)}"


def _server_url(host: SupervisorHost) -> str:
    # The format is that of supervisor's options.py. A supervisord that a user started by hand also sets this variable.
    return f"SUPERVISOR_SERVER_URL=unix://{normpath(host.cfg.socket_path)}"


async def _find_orphans(host: SupervisorHost, sessions: tuple[int, ...], signal: str) -> set[int] | None:
    """Send a signal to the processes whose supervisord has ended, and return the pids of these processes. If another
    process has locked the lock file, return None.
    """
    # The fields are: pid (command) state ppid pgrp session; see proc(5). Zombies are ignored: their parents reap them.
    searches = [(*_whole(marker), "environ") for marker in (environment_marker(host), _server_url(host))]
    searches += [(rf"^[0-9]* (.*) [^ZX] [0-9]* [0-9]* {session} ", "", "stat") for session in sessions]
    orphans: set[int] = set()
    for pattern, text, file in searches:
        found = await _find(host, pattern, text, file, signal, locked=True)
        if found is None:
            return None
        orphans.update(found)
    return orphans


def _whole(text: str) -> tuple[str, str]:
    """Return two values: a regular expression that matches the given text, and the text itself."""
    return _SPECIAL.sub(r"\\\g<0>", text), text


async def _find(
    host: SupervisorHost, pattern: str, text: str, file: str, signal: str = "", *, locked: bool = False
) -> list[int] | None:
    """Return the pids of all processes whose file in /proc/<pid>, such as ``cmdline``, contains a pattern.

    :param pattern: a basic regular expression for grep.
    :param text: a text that must be one whole entry of the file; "" if each match of the pattern counts.
    :param file: the name of the file in /proc/<pid>, for example ``cmdline``.
    :param signal: name of the signal to send to each process that is found, such as TERM; "" sends no signal.
    :param locked: whether the lock file must be locked during the search. If another process has locked the lock file,
        the function searches no files and returns None.
    """
    script, arguments = _FIND, [pattern, text, file, signal]
    if locked:
        script, arguments = KEEP_LOCK + _FIND, [str(host.lock), *arguments]
    result = await host.machine.run(
        ["sh", "-c", script, "sh", *arguments], timeout=host.cfg.airflow.command_timeout
    )
    if result.code == LOCKED:
        return None
    if result.code != 0:
        raise StepFailed(f"could not search for processes on {host.machine.name}: {_explain(result.code)}")
    return [int(line) for line in result.output.split() if line.isdigit()]


def _explain(code: int) -> str:
    known = {
        NO_FLOCK: "flock is missing; install util-linux there",
        _NO_PROC: "there is no /proc file system; mount it",
        _NO_GREP: "grep or tr is missing; install grep and coreutils, or busybox, there",
    }
    return known.get(code, f"sh exited with {code}")


def _is_daemon_command(command: tuple[str, ...], config: str) -> bool:
    has_config = any(first == "-c" and second == config for first, second in pairwise(command))
    return has_config and any(
        part == "supervisor.supervisord" or PurePath(part).name == "supervisord" for part in command
    )
