"""The commands of ``deferrable-ops supervisord`` that run one step of a Supervisor without Airflow's scheduler.

Each command has the name of its step, as in airflow-supervisor, and reads the configuration from a YAML file. The
commands work on this host; with an SSH configuration, on the remote machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.cli.common import print_table
from deferrable_ops.supervisord.arguments import add_file_command

if TYPE_CHECKING:
    from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
    from deferrable_ops.supervisord.processes import Process

_COLUMNS: Final = ("PROCESS", "STATE", "PID", "EXIT CODE", "ERROR")


def configure_supervisor(options: argparse.Namespace) -> int:
    """Create supervisord's directories, and write supervisord's configuration file."""
    cfg = _read(options)
    print(f"{'Wrote' if cfg.write() else 'Nothing to change:'} {cfg.config_path}")
    return 0


def start_supervisor(options: argparse.Namespace) -> int:
    """Start supervisord, unless it is already running."""
    print(f"supervisord runs with pid {_read(options).start()}")
    return 0


def start_programs(options: argparse.Namespace) -> int:
    """Start the programs that are not running."""
    return _print_started(options, restart=options.restart)


def restart_programs(options: argparse.Namespace) -> int:
    """Restart all programs."""
    return _print_started(options, restart=True)


def check_programs(options: argparse.Namespace) -> int:
    """Print the states of the programs. Return the exit code: 1 if a program is not in the wanted state."""
    from deferrable_ops.supervisord.processes import ProcessState, has_ended_well, processes_by_program
    from deferrable_ops.triggers.supervisor.control import HOST_CONTROL

    cfg = _read(options)
    found = HOST_CONTROL.processes(cfg)
    _print_processes(found)
    running = () if options.check_done else (ProcessState.STARTING, ProcessState.RUNNING)
    is_wanted = all(
        len(own) >= cfg.programs[name].numprocs
        and all(
            process.state in running
            or (not options.check_running and has_ended_well(process, cfg.programs[name]))
            for process in own
        )
        for name, own in processes_by_program(cfg, found).items()
    )
    return 0 if is_wanted else 1


def stop_programs(options: argparse.Namespace) -> int:
    """Stop the programs."""
    from deferrable_ops.triggers.supervisor.control import HOST_CONTROL

    _print_processes(HOST_CONTROL.stop_programs(_read(options)))
    return 0


def stop_supervisor(options: argparse.Namespace) -> int:
    """Stop the programs and supervisord."""
    _print_pids("Stopped supervisord", "supervisord was not running", _read(options).stop())
    return 0


def force_kill(options: argparse.Namespace) -> int:
    """Kill supervisord and the processes of its programs."""
    _print_pids("Killed the processes", "no process was running", _read(options).kill())
    return 0


def unconfigure_supervisor(options: argparse.Namespace) -> int:
    """Remove supervisord's files."""
    print(f"Removed: {', '.join(_read(options).rmdir()) or 'own files of supervisord, if there were any'}")
    return 0


def add_commands(commands: Any) -> None:
    """Add a command for each step to the argument parser of ``deferrable-ops supervisord``."""
    _add(commands, "configure-supervisor", "write the configuration file", configure_supervisor)
    _add(commands, "start-supervisor", "start supervisord", start_supervisor)
    start = _add(commands, "start-programs", "start the programs that are not running", start_programs)
    start.add_argument("--restart", action="store_true", help="restart the programs that are running, too")
    check = _add(commands, "check-programs", "print the states of the programs", check_programs)
    wanted = check.add_mutually_exclusive_group()
    wanted.add_argument(
        "--check-running", action="store_true", help="exit with 1 unless all programs are running"
    )
    wanted.add_argument(
        "--check-done", action="store_true", help="exit with 1 unless all programs have ended well"
    )
    _add(commands, "restart-programs", "restart all programs", restart_programs)
    _add(commands, "stop-programs", "stop the programs", stop_programs)
    _add(commands, "stop-supervisor", "stop the programs and supervisord", stop_supervisor)
    _add(commands, "force-kill", "kill supervisord and its programs", force_kill)
    _add(commands, "unconfigure-supervisor", "remove supervisord's files", unconfigure_supervisor)


def _add(
    commands: Any, name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    return add_file_command(commands, name, summary, run, "airflow")


def _read(options: argparse.Namespace) -> SupervisorAirflowConfiguration:
    from deferrable_ops.exceptions import InputError
    from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
    from deferrable_ops.supervisord.command import read_configuration
    from deferrable_ops.supervisord.control import register
    from deferrable_ops.triggers.supervisor.control import HOST_CONTROL

    register(HOST_CONTROL)
    cfg = read_configuration(options, default="airflow")
    if not isinstance(cfg, SupervisorAirflowConfiguration):
        raise InputError(
            f"{options.file} is a {type(cfg).__name__}, for which a step has no directory and no socket; select "
            "another kind with --as airflow or --as ssh"
        )
    return cfg


def _print_started(options: argparse.Namespace, *, restart: bool) -> int:
    from deferrable_ops.triggers.supervisor.control import HOST_CONTROL

    _print_processes(HOST_CONTROL.start_programs(_read(options), restart=restart))
    return 0


def _print_processes(found: Iterable[Process]) -> None:
    rows = [
        (process.full_name, process.state.name, process.pid or "", process.exit_code, process.error)
        for process in found
    ]
    print_table([_COLUMNS, *(tuple(map(str, row)) for row in rows)])


def _print_pids(done: str, nothing: str, pids: list[int]) -> None:
    print(f"{done}: {', '.join(map(str, pids))}" if pids else nothing)
