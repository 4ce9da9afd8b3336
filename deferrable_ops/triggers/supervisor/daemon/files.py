"""The files and directories of a supervisord: made before it starts, and removed when it is gone.

A directory that was not there, or was empty, is marked as ours by a file in it, and is removed with all that it holds;
one that cannot be removed, as a mounted volume, is left empty. Of one that held something before, only supervisord's
own files are removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deferrable_ops.triggers.supervisor.daemon.drift import file_equals
from deferrable_ops.triggers.supervisor.daemon.processes import KEEP_LOCK, find_daemons, run_without_daemon
from deferrable_ops.triggers.supervisor.host import LOCK, StepFailed, SupervisorHost
from deferrable_ops.upstreams.machine.machine import FileStatus

_MARK: Final = ".deferrable_ops"
_MARKED: Final = (
    b"This directory was made for a supervisord by airflow-deferrable-ops, and is removed with it.\n"
)

# The mark goes last: what is cut off here goes on the next time.
_CLEAR: Final = (
    KEEP_LOCK
    + f"""for folder; do
  find "$folder" -mindepth 1 -maxdepth 1 ! -name {_MARK} ! -name {LOCK} -exec rm -rf -- {{}} + || exit 1
  rm -f -- "$folder/{LOCK}" && rm -f -- "$folder/{_MARK}" || exit 1
  said=$(rmdir -- "$folder" 2>&1) || [ -z "$(ls -A -- "$folder")" ] || {{ echo "$said"; exit 1; }}
done
"""
)
_REMOVE: Final = KEEP_LOCK + 'rm -f -- "$@"\n'


async def configure(host: SupervisorHost) -> bool:
    """Make the directories and write the file, unless it is there already; return whether it was written.

    :raises MachineRefused: a directory is another user's, or a link.
    """
    folders = host.cfg.directories
    statuses, marks = await _looked_at(host, folders)
    ours: list[Path] = []
    await host.check()
    for folder, status, mark in zip(folders, statuses, marks, strict=True):
        if any(folder.is_relative_to(parent) for parent in ours):
            await host.machine.make_directory(folder)
            continue
        is_ours = mark is not None or status is None or await _holds_only(host, folder, "", LOCK)
        await host.machine.make_directory(folder)
        if is_ours:
            ours.append(folder)
        if is_ours and mark is None:
            await host.machine.write(folder / _MARK, _MARKED)
    file = host.cfg.to_cfg().encode()
    if await file_equals(host.machine, host.cfg.config_path, file):
        return False
    await host.check()
    await host.machine.write(host.cfg.config_path, file)
    return True


async def unconfigure(host: SupervisorHost) -> list[str]:
    """Remove what :func:`configure` and supervisord have made; return the directories that are gone.

    :raises StepFailed: supervisord still runs, or something cannot be removed.
    """
    if await find_daemons(host):
        raise StepFailed(_still_runs(host))
    folders = host.cfg.directories
    statuses, marks = await _looked_at(host, folders)
    ours: list[Path] = []
    for folder, status, mark in zip(folders, statuses, marks, strict=True):
        inside = any(folder.is_relative_to(parent) for parent in ours)
        if status is None or inside:
            continue
        # Somebody who was about to start a supervisord has put the lock back, and so kept the directory.
        if mark is not None or await _holds_only(host, folder, LOCK):
            ours.append(folder)
    if statuses[0] is None:
        return []
    elsewhere = [file for file in _own_files(host) if not any(map(file.is_relative_to, ours))]
    # The daemon's own directory goes last, because the lock is in it.
    removals = [(_REMOVE, elsewhere), (_CLEAR, list(reversed(ours)))]
    for script, paths in removals if folders[0] in ours else reversed(removals):
        if paths:
            await _script(host, script, paths)
    return [str(folder) for folder in ours]


def _own_files(host: SupervisorHost) -> list[Path]:
    """Return the files that this library and supervisord make, in a directory that was there before."""
    cfg, daemon = host.cfg, host.cfg.supervisord
    logs = _rotated(daemon.logfile, daemon.logfile_backups)
    for program in cfg.programs.values():
        numbers = range(program.numprocs_start, program.numprocs_start + program.numprocs)
        for log, backups in (
            (program.stdout_logfile, program.stdout_logfile_backups),
            (program.stderr_logfile, program.stderr_logfile_backups),
        ):
            if log.is_relative_to(host.folder):
                names = {str(log).replace("%(process_num)s", str(number)) for number in numbers}
                logs += [file for name in sorted(names) for file in _rotated(Path(name), backups)]
    # The lock's file goes last: whoever takes it next makes it anew, and finds no configuration to start with.
    return [cfg.config_path, cfg.socket_path, daemon.pidfile, *logs, host.lock]


def _rotated(log: Path, backups: int) -> list[Path]:
    return [log, *(log.with_name(f"{log.name}.{number}") for number in range(1, backups + 1))]


async def _script(host: SupervisorHost, script: str, paths: Sequence[Path]) -> None:
    ended = await run_without_daemon(host, script, *map(str, paths))
    if ended is None:
        raise StepFailed(_still_runs(host))
    if ended.code != 0:
        raise StepFailed(f"files cannot be removed on {host.machine.name}: {ended.output.strip()}")


def _still_runs(host: SupervisorHost) -> str:
    return f"supervisord still runs in {host.folder} on {host.machine.name}; stop-supervisor or force-kill ends it"


async def _looked_at(
    host: SupervisorHost, folders: Sequence[Path]
) -> tuple[list[FileStatus | None], list[FileStatus | None]]:
    """Return what each directory is, and its mark."""
    found = await host.machine.status(*folders, *(folder / _MARK for folder in folders))
    return found[: len(folders)], found[len(folders) :]


async def _holds_only(host: SupervisorHost, folder: Path, *names: str) -> bool:
    """Return whether a directory holds one of these files, and nothing else; "": nothing at all."""
    ended = await host.machine.run(["ls", "-A", "--", str(folder)], timeout=host.cfg.airflow.command_timeout)
    return ended.code == 0 and ended.output.strip() in names
