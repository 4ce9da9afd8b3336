"""Creates the files and directories of a supervisord, and removes them after supervisord has ended.

If a directory does not exist or is empty, the library puts a marker file into this directory. When the files are
removed, a directory with a marker file is removed with all its contents. If such a directory cannot be removed, for
example because it is a mounted volume, only its contents are removed. A directory that already contained other files
gets no marker file. From such a directory, only supervisord's files are removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deferrable_ops.triggers.supervisor.daemon.drift import file_equals, write_environment_files
from deferrable_ops.triggers.supervisor.daemon.processes import (
    KEEP_LOCK,
    find_daemons,
    run_without_daemon,
)
from deferrable_ops.triggers.supervisor.host import LOCK, StepFailed, SupervisorHost
from deferrable_ops.upstreams.machine.machine import FileStatus

_MARKER: Final = ".deferrable_ops"
_MARKER_TEXT: Final = (
    b"This directory was made for a supervisord by airflow-deferrable-ops, and is removed with it.\n"
)

# The marker is removed last. After an interrupted removal, the next call finds the marker and completes the removal.
_CLEAR: Final = (
    KEEP_LOCK
    + f"""for folder; do
  find "$folder/." ! -name . -prune ! -name {_MARKER} ! -name {LOCK} -exec rm -rf -- {{}} + || exit 1
  rm -f -- "$folder/{LOCK}" && rm -f -- "$folder/{_MARKER}" || exit 1
  error=$(rmdir -- "$folder" 2>&1) || [ -z "$(ls -A -- "$folder")" ] || {{ echo "$error"; exit 1; }}
done
"""
)
_REMOVE: Final = KEEP_LOCK + 'rm -f -- "$@"\n'


async def configure(host: SupervisorHost) -> bool:
    """Create the directories of supervisord, and write its configuration file if the content has changed.

    Return whether the configuration file was written.

    :raises MachineRefused: if a directory is a symbolic link, or is owned by another user.
    """
    folders = host.cfg.directories
    statuses, markers = await _status_of(host, folders)
    ours: list[Path] = []
    await host.check_claim()
    for folder, status, marker in zip(folders, statuses, markers, strict=True):
        if any(folder.is_relative_to(parent) for parent in ours):
            await host.machine.make_directory(folder)
            continue
        is_ours = marker is not None or status is None or await _contains_only(host, folder, "", LOCK)
        await host.machine.make_directory(folder)
        if is_ours:
            ours.append(folder)
        if is_ours and marker is None:
            await host.machine.write(folder / _MARKER, _MARKER_TEXT)
    await write_environment_files(host.cfg, host.machine)
    file = host.cfg.to_cfg().encode()
    if await file_equals(host.machine, host.cfg.config_path, file):
        return False
    await host.check_claim()
    await host.machine.write(host.cfg.config_path, file)
    return True


async def unconfigure(host: SupervisorHost) -> list[str]:
    """Remove the files that :func:`configure` and supervisord created. Return the paths of the removed directories.

    :raises StepFailed: if supervisord is still running, or a file cannot be removed.
    """
    if await find_daemons(host):
        raise StepFailed(_still_runs(host))
    folders = host.cfg.directories
    statuses, markers = await _status_of(host, folders)
    ours: list[Path] = []
    for folder, status, marker in zip(folders, statuses, markers, strict=True):
        inside = any(folder.is_relative_to(parent) for parent in ours)
        if status is None or inside:
            continue
        # If the directory contains only the lock, it is also ours: after the marker was removed, a step that was about
        # to start supervisord may have created the lock again.
        if marker is not None or await _contains_only(host, folder, LOCK):
            ours.append(folder)
    if statuses[0] is None:
        return []
    elsewhere = [file for file in _own_files(host) if not any(map(file.is_relative_to, ours))]
    # working_dir is removed last, because the lock is in it.
    removals = [(_REMOVE, elsewhere), (_CLEAR, list(reversed(ours)))]
    for script, paths in removals if folders[0] in ours else reversed(removals):
        if paths:
            await host.check_claim()
            await _run_script(host, script, paths)
    return [str(folder) for folder in ours]


def _own_files(host: SupervisorHost) -> list[Path]:
    """Return the files of this library and of supervisord, which must be removed one by one from a directory without a
    marker file.
    """
    cfg, daemon = host.cfg, host.cfg.supervisord
    logs = _with_backups(daemon.logfile, daemon.logfile_backups)
    for program in cfg.programs.values():
        numbers = range(program.numprocs_start, program.numprocs_start + program.numprocs)
        for log, backups in (
            (program.stdout_logfile, program.stdout_logfile_backups),
            (program.stderr_logfile, program.stderr_logfile_backups),
        ):
            if log.is_relative_to(host.working_dir):
                names = {str(log).replace("%(process_num)s", str(number)) for number in numbers}
                logs += [file for name in sorted(names) for file in _with_backups(Path(name), backups)]
    # The lock is removed last. A step may create the lock again to start supervisord. At that time, the configuration
    # file is already removed, so supervisord does not start.
    scripts = [cfg.config_path.with_name(name) for name in cfg.environment_files()]
    return [cfg.config_path, *scripts, cfg.socket_path, daemon.pidfile, *logs, host.lock]


def _with_backups(log: Path, backups: int) -> list[Path]:
    return [log, *(log.with_name(f"{log.name}.{number}") for number in range(1, backups + 1))]


async def _run_script(host: SupervisorHost, script: str, paths: Sequence[Path]) -> None:
    result = await run_without_daemon(host, script, *map(str, paths))
    if result is None:
        raise StepFailed(_still_runs(host))
    if result.code != 0:
        raise StepFailed(f"could not remove files on {host.machine.name}: {result.output.strip()}")


def _still_runs(host: SupervisorHost) -> str:
    return (
        f"supervisord still runs in {host.working_dir} on {host.machine.name}; clear the DAG's task "
        "'stop-supervisor' to stop supervisord, or the task 'force-kill' to kill it"
    )


async def _status_of(
    host: SupervisorHost, folders: Sequence[Path]
) -> tuple[list[FileStatus | None], list[FileStatus | None]]:
    """Return two lists: the file status of each directory, and the file status of the marker file in each directory."""
    found = await host.machine.status(*folders, *(folder / _MARKER for folder in folders))
    return found[: len(folders)], found[len(folders) :]


async def _contains_only(host: SupervisorHost, folder: Path, *names: str) -> bool:
    """Return whether a directory contains exactly one file, and the name of this file is one of `names`.

    If "" is one of `names`, also return True for an empty directory.
    """
    result = await host.machine.run(["ls", "-A", "--", str(folder)], timeout=host.cfg.airflow.command_timeout)
    return result.code == 0 and result.output.strip() in names
