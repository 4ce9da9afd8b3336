"""Reads and writes Airflow's metadata database.

Only the API server's plugin and the command ``deferrable-ops`` use this module.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import make_url, select, tuple_, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from deferrable_ops import settings
from deferrable_ops.deployment import VARIABLE, id_in
from deferrable_ops.exceptions import ConfigurationError, DeploymentError
from deferrable_ops.inbox.waits.wait import WaitingAttempt

log = logging.getLogger(__name__)

_DEFAULT_PORTS: Final = {"postgresql": 5432, "mysql": 3306}
_ENDED: Final = frozenset({"success", "failed", "skipped", "upstream_failed", "removed", "up_for_retry"})
"""The states of a task instance whose attempt is over."""
_UNDER_WAY: Final = frozenset(
    {"deferred", "scheduled", "queued", "running", "restarting", "up_for_retry", "up_for_reschedule"}
)
"""The states of a task instance that Airflow still runs, or will run again."""
_ROWS_PER_QUERY: Final = 500
_TRIES: Final = 10
_DESCRIPTION: Final = (
    "This Airflow's id for airflow-deferrable-ops. The API server writes the id; do not change it."
)


def ensure_deployment() -> str:
    """Return the id of this Airflow's deployment: the value of the setting ``deployment``, or else the id in the
    Airflow Variable.

    If the Airflow Variable has no id, or an id that was made for another metadata database, a new id is written to the
    Airflow Variable. An id that was made for another metadata database means that this metadata database is a copy, or
    that its address has changed. Only the API server may call this function. Several API servers may call this function
    at the same time, and all of them get the same id.

    :raises DeploymentError: if the Airflow Variable cannot be decrypted, or cannot be written.
    """
    if (given := settings.deployment()) is not None:
        return given
    made_for = _address_hash()
    for _ in range(_TRIES):
        stored = _read()
        found, its_database = _parse(stored)
        if found is not None and its_database == made_for:
            return found
        new = uuid4().hex
        if not _replace(stored, json.dumps({"id": new, "made_for": made_for})):
            # Another API server was faster.
            continue
        if found is None:
            log.info("The deployment id of this Airflow is %s now (Airflow Variable %s)", new, VARIABLE)
        else:
            log.error(
                "THE METADATA DATABASE IS A COPY, OR ITS ADDRESS HAS CHANGED: the deployment id %s was made for "
                "another host, port or database. The deployment id of this Airflow is %s from now on, and this Airflow "
                "does not use an inbox that belongs to %s. Restart the triggerers of this Airflow. If "
                "this Airflow replaces the other Airflow, run: deferrable-ops inbox adopt %s",
                found,
                new,
                found,
                new,
            )
        return new
    raise DeploymentError(
        f"the Airflow Variable {VARIABLE} cannot be written; choose an id for this deployment of Airflow, and set "
        "[deferrable_ops] deployment to this id"
    )


def read_deployment() -> str:
    """Return the id of this Airflow's deployment, without writing to the metadata database.

    :raises ConfigurationError: if there is no id, if the id was made for another metadata database, or if the metadata
        database cannot be read.
    """
    if (given := settings.deployment()) is not None:
        return given
    try:
        found, made_for = _parse(_read())
    except SQLAlchemyError as error:
        raise ConfigurationError(
            f"cannot read Airflow's metadata database ({type(error).__name__}); give the id of the deployment, or run "
            "the command on a machine on which [database] sql_alchemy_conn is set"
        ) from None
    if found is None:
        raise ConfigurationError(
            f"this Airflow has no Airflow Variable {VARIABLE} yet; start the API server of this Airflow, set "
            "[deferrable_ops] deployment, or give the id of the deployment"
        )
    if made_for != _address_hash():
        raise ConfigurationError(
            f"the Airflow Variable {VARIABLE} was made for another metadata database; start this Airflow's API "
            "server, which makes a new id, or give the id of the deployment"
        )
    return found


async def find_ended(attempts: Sequence[WaitingAttempt]) -> list[WaitingAttempt]:
    """Return those of the attempts that are over. An attempt is over if its task instance has ended or has a newer
    attempt.
    """
    newest = await asyncio.to_thread(_newest_attempts, attempts)
    return [
        attempt
        for attempt in attempts
        if (found := newest.get(attempt.ti_id)) is not None
        and (found[0] > attempt.try_number or (found[0] == attempt.try_number and found[1] in _ENDED))
    ]


async def find_over(runs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return those of the DAG runs that are over or deleted, unless another run of the same DAG is queued or running.

    :param runs: pairs of a DAG id and a run id.
    """
    busy_dags, busy_runs = await asyncio.to_thread(_under_way, runs)
    return [run for run in runs if run[0] not in busy_dags and run not in busy_runs]


def _under_way(runs: Sequence[tuple[str, str]]) -> tuple[set[str], set[tuple[str, str]]]:
    """Return two sets: the ids of the DAGs that have a queued or running DAG run, and those of the given DAG runs in
    which Airflow still runs a task.

    Teardown tasks may run after a user has ended their DAG run.
    """
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import State

    dags = select(DagRun.dag_id).where(
        DagRun.dag_id.in_({dag_id for dag_id, _ in runs}), DagRun.state.in_(State.unfinished_dr_states)
    )
    run_of_task = (TaskInstance.dag_id, TaskInstance.run_id)
    tasks = select(*run_of_task).where(tuple_(*run_of_task).in_(runs), TaskInstance.state.in_(_UNDER_WAY))
    with create_session() as session:
        return {*session.scalars(dags)}, {(dag_id, run_id) for dag_id, run_id in session.execute(tasks)}


def find_orphaned(attempts: Sequence[WaitingAttempt]) -> list[WaitingAttempt]:
    """Return the attempts whose task instance is not in the metadata database.

    The task instance of such an attempt was deleted, or belongs to another Airflow.
    """
    newest = _newest_attempts(attempts)
    return [attempt for attempt in attempts if attempt.ti_id not in newest]


def _newest_attempts(attempts: Sequence[WaitingAttempt]) -> dict[str, tuple[int, str | None]]:
    """Return a dict from a task instance's id to the try number and the state of its newest attempt."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskinstancehistory import TaskInstanceHistory
    from airflow.utils.session import create_session

    ids = [UUID(attempt.ti_id) for attempt in attempts]
    found: dict[str, tuple[int, str | None]] = {}
    with create_session() as session:
        for start in range(0, len(ids), _ROWS_PER_QUERY):
            page = ids[start : start + _ROWS_PER_QUERY]
            # Clearing and retrying give the task instance another id, and move the old one to the history.
            history = select(TaskInstanceHistory.task_instance_id, TaskInstanceHistory.try_number).where(
                TaskInstanceHistory.task_instance_id.in_(page)
            )
            found |= {str(ti_id): (try_number, "removed") for ti_id, try_number in session.execute(history)}
            current = select(TaskInstance.id, TaskInstance.try_number, TaskInstance.state).where(
                TaskInstance.id.in_(page)
            )
            found |= {
                str(ti_id): (try_number, state) for ti_id, try_number, state in session.execute(current)
            }
    return found


def _read() -> Any:
    """Return the Airflow Variable with the deployment's id, or None if the Variable does not exist."""
    from airflow.models.variable import Variable
    from airflow.utils.session import create_session

    with create_session() as session:
        variable = session.scalar(select(Variable).where(Variable.key == VARIABLE))
        if variable is not None:
            session.expunge(variable)
        return variable


def _replace(stored: Any, value: str) -> bool:
    """Write `value` to the Airflow Variable, unless another process has changed the Variable since `stored` was read.

    Return whether this call has written the Variable.
    """
    from airflow.models.variable import Variable
    from airflow.utils.session import create_session

    new = Variable(key=VARIABLE, val=value, description=_DESCRIPTION)  # type: ignore[no-untyped-call]
    try:
        with create_session() as session:
            if stored is None:
                session.add(new)
                session.flush()
                return True
            # The encrypted value is different after each write.
            unchanged = (Variable.key == VARIABLE, Variable._val == stored._val)
            written = session.execute(
                update(Variable)
                .where(*unchanged)
                .values(_val=new._val, is_encrypted=new.is_encrypted)
                .execution_options(synchronize_session=False)
            )
            return bool(written.rowcount == 1)  # type: ignore[attr-defined]
    except IntegrityError:
        return False


def _parse(stored: Any) -> tuple[str | None, str | None]:
    """Return the deployment's id in the Airflow Variable, and the hash of the metadata database that the id belongs to.

    :raises DeploymentError: if the Airflow Variable cannot be decrypted.
    """
    if stored is None:
        return None, None
    value: str | None = stored.val
    if value is None:
        raise DeploymentError(
            f"the Airflow Variable {VARIABLE} cannot be decrypted; check that [core] fernet_key is the key with which "
            "the Variable was written"
        )
    found = id_in(value)
    return found, None if found is None else json.loads(value).get("made_for")


def _address_hash() -> str:
    """Return a hash of the metadata database's host, port and name."""
    from airflow.configuration import conf

    url = make_url(conf.get_mandatory_value("database", "sql_alchemy_conn"))
    address = [url.host or "", url.port or _DEFAULT_PORTS.get(url.get_backend_name(), 0), url.database or ""]
    return hashlib.sha256(json.dumps(address).encode()).hexdigest()
