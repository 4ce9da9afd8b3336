"""Checks the health of a supervisord's programs from a task on a worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from xmlrpc.client import Error as XmlRpcError

from airflow.sdk.exceptions import AirflowException

from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.operators.supervisor.arguments import parse_configuration
from deferrable_ops.supervisord import SupervisorAirflowConfiguration, SupervisorSSHAirflowConfiguration
from deferrable_ops.supervisord.processes import Process, ProcessState, has_ended_well, processes_by_program
from deferrable_ops.triggers.supervisor.client import SupervisorClient
from deferrable_ops.triggers.supervisor.watch.process_xcoms import FAILURE, STATUS, status_of

_UP: Final = (ProcessState.STARTING, ProcessState.RUNNING)


def check_supervisor_health(
    cfg: SupervisorAirflowConfiguration | Mapping[str, Any],
    require_running: bool = True,
    supervisor_client: Any = None,
    **context: Any,
) -> dict[str, Any]:
    """Check the programs of a supervisord, without starting or stopping anything. Call this function in a task on a
    worker, for example as ``python_callable`` of a PythonOperator.

    If the arguments contain ``ti`` or ``task_instance``, as in a PythonOperator, the function pushes the XCom
    ``supervisor_process_status``, and ``supervisor_failure`` if a program is not healthy.

    :param cfg: the configuration of the supervisord, or a dict with its fields.
    :param require_running: whether each program must be running. If False, a program may also have ended, with an exit
        code that the program's ``exitcodes`` contain.
    :param supervisor_client: an object with the method ``getAllProcessInfo()``, for a supervisord that the library
        cannot reach through its Unix socket; for example ``xmlrpc.client.ServerProxy(url).supervisor``. By default, a
        :class:`SupervisorClient` for `cfg`.
    :return: a dict with the keys ``host``, ``healthy`` (always True) and ``processes``, a list with the states.
    :raises AirflowException: if a program is not healthy, or if supervisord cannot be called.
    """
    kind = SupervisorAirflowConfiguration
    if isinstance(cfg, SupervisorSSHAirflowConfiguration):
        kind = SupervisorSSHAirflowConfiguration
    cfg = parse_configuration(kind, cfg)
    client = supervisor_client or SupervisorClient(cfg)
    is_own = isinstance(client, SupervisorClient)
    try:
        found = processes_by_program(cfg, _processes(client))
    except (DeferrableOpsError, XmlRpcError, OSError, ValueError, RuntimeError) as error:
        raise AirflowException(f"the programs of the supervisord cannot be checked: {error}") from error
    ill = _ill_processes(cfg, found, require_running)
    rows = [status_of(name, process) for name, own in found.items() for process in own]
    missing = [name for name, program in cfg.programs.items() if len(found[name]) < program.numprocs]
    ti = context.get("ti") or context.get("task_instance")
    if ti is not None:
        ti.xcom_push(key=STATUS, value=rows)
        if ill or missing:
            ti.xcom_push(
                key=FAILURE,
                value=[
                    status_of(name, process)
                    | {"last_lines": client.last_lines(process.full_name) if is_own else []}
                    for name, process in ill
                ],
            )
    reasons = [_describe(process) for _, process in ill]
    reasons += [f"supervisord has not loaded all processes of {name!r}" for name in missing]
    if reasons:
        raise AirflowException(f"the supervisord is not healthy: {'; '.join(reasons)}")
    return {"host": cfg.host, "healthy": True, "processes": rows}


def _processes(client: Any) -> list[Process]:
    if isinstance(client, SupervisorClient):
        return client.processes()
    answers: Iterable[Any] = client.getAllProcessInfo()
    return [Process.from_info(_plain(answer)) for answer in answers]


def _plain(info: Any) -> Mapping[str, Any]:
    """Convert an answer of supervisord to a dict. A client that the user has given may return an object with the same
    fields.
    """
    if isinstance(info, Mapping):
        return info
    moments = {name: int(getattr(info, name).timestamp()) for name in ("start", "now")}
    names = ("group", "name", "exitstatus", "pid", "spawnerr", "stdout_logfile", "stderr_logfile")
    return {name: getattr(info, name) for name in names} | moments | {"state": info.state.value}


def _ill_processes(
    cfg: SupervisorAirflowConfiguration, found: Mapping[str, tuple[Process, ...]], require_running: bool
) -> list[tuple[str, Process]]:
    def is_healthy(name: str, process: Process) -> bool:
        return process.state in _UP or (not require_running and has_ended_well(process, cfg.programs[name]))

    return [
        (name, process) for name, own in found.items() for process in own if not is_healthy(name, process)
    ]


def _describe(process: Process) -> str:
    return (
        f"{process.full_name} state={process.state.name} exitstatus={process.exit_code} "
        f"spawnerr={process.error or '-'}"
    )
