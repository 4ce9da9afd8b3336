"""Reads Airflow connections in a triggerer.

With the Airflow setting ``[core] multi_team``, a connection can belong to a team. Airflow's API inside a triggerer does
not know the team of a task, so the API returns only connections that belong to no team. Therefore this module first
searches the secrets backends of this process for a connection of the team: see :func:`team_connection`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from functools import cache
from typing import Any, Final

from deferrable_ops import settings
from deferrable_ops.exceptions import AirflowUnavailable, ConfigurationError
from deferrable_ops.supervisor_calls import Rank, call_supervisor

log = logging.getLogger(__name__)

# In seconds. The triggerer's supervisor process handles requests for connections one at a time, so an answer may take
# long. The process may also drop a request.
_TIMEOUT: Final = 60.0


_LIMIT: Final = "does not give triggerers the connections of a team that are stored in its database"


class UnknownConnection(ConfigurationError):
    """Airflow has no connection with this id."""


async def read_connection(conn_id: str, *, timeout: float = _TIMEOUT) -> tuple[Any, Any]:
    """Return an Airflow connection, and the content of its field ``extra``. After this call, Airflow masks the values
    in ``extra`` in all logs of this process.

    :param timeout: the longest time in seconds to wait until Airflow returns the connection.
    :raises UnknownConnection: if Airflow has no connection with this id.
    :raises AirflowUnavailable: if Airflow does not return the connection within the timeout, or cannot read the
        connection now.
    :raises ConfigurationError: if the field ``extra`` of the connection is not JSON.
    """
    from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

    try:
        connection, extra = await call_supervisor(lambda: _read(conn_id), rank=Rank.READ, timeout=timeout)
    except TimeoutError:
        raise AirflowUnavailable(
            f"Airflow did not return the connection {conn_id!r} within {timeout:g} s"
        ) from None
    except AirflowNotFoundException as error:
        raise UnknownConnection(missing_connection(conn_id, error)) from None
    except AirflowException as error:
        raise AirflowUnavailable(f"could not read the connection {conn_id!r}: {error}") from None
    # Airflow returns {} for an extra that is not JSON. Without this check, default credentials would be used.
    if connection.extra and not extra and "".join(connection.extra.split()) not in ("{}", "null"):
        raise ConfigurationError(f"the extra of the connection {conn_id!r} is not JSON; write it as JSON")
    return connection, extra


def team_connection(conn_id: str) -> Any:
    """Search the secrets backends of this process for a connection of the team of this process, and return it.

    Return None if this process belongs to no team, or if the backends have no such connection. Call this function in a
    thread, because it may block.

    :raises AirflowUnavailable: if a secrets backend failed. The function does not return None in this case, because the
        caller would then use a connection without a team.
    """
    from airflow.sdk.execution_time.secrets import ExecutionAPISecretsBackend
    from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded
    from airflow.sdk.log import mask_secret
    from airflow.secrets.environment_variables import EnvironmentVariablesBackend

    team = settings.team()
    if team is None:
        return None
    for backend in ensure_secrets_backend_loaded():
        # These backends return only connections without a team, and the environment returns such a connection if the
        # team has no variable of its own.
        if isinstance(backend, ExecutionAPISecretsBackend) or not _knows_teams(backend):
            continue
        if isinstance(backend, EnvironmentVariablesBackend) and _variable(conn_id, team) not in os.environ:
            continue
        try:
            found = backend.get_connection(conn_id=conn_id, team_name=team)
        except Exception as error:
            raise AirflowUnavailable(
                f"could not read the connection {conn_id!r} of the team {team} from {type(backend).__name__}: "
                f"{type(error).__name__}"
            ) from None
        if found is not None:
            if found.password:
                mask_secret(found.password)
            return found
    _report_without_team(conn_id, team)
    return None


def missing_connection(conn_id: str, error: Exception) -> str:
    """Return an error message: Airflow has no connection with this id, and how to create the connection."""
    team = settings.team()
    if team is None:
        return f"there is no connection {conn_id!r}; create it ({error})"
    return (
        f"there is no connection {conn_id!r} that a triggerer of the team {team} can read, because Airflow {_LIMIT}. "
        f"Define {_variable(conn_id, team)} in the environment of the team's triggerers, or use a secrets backend that "
        "supports teams"
    )


async def _read(conn_id: str) -> tuple[Any, Any]:
    from airflow.sdk import BaseHook

    connection = None
    if settings.team() is not None:
        connection = await asyncio.to_thread(team_connection, conn_id)
    if connection is None:
        connection = await BaseHook.aget_connection(conn_id)
    # In an API server, which cancels work too, Airflow returns its database model. This model has no async methods.
    if (read_extra := getattr(connection, "aextra_dejson", None)) is None:
        return connection, connection.extra_dejson
    return connection, await read_extra()


def _variable(conn_id: str, team: str) -> str:
    return f"AIRFLOW_CONN__{team.upper()}___{conn_id.upper()}"


def _knows_teams(backend: Any) -> bool:
    return all(
        any(
            one.name == "team_name" or one.kind is one.VAR_KEYWORD
            for one in inspect.signature(method).parameters.values()
        )
        for method in (backend.get_connection, backend.get_conn_value)
    )


@cache
def _report_without_team(conn_id: str, team: str) -> None:
    log.warning(
        "The team %s has no connection %r in the environment or in a secrets backend. So a connection without a team "
        "is used, if there is one. If the team needs its own connection, define it there, because Airflow %s",
        team,
        conn_id,
        _LIMIT,
    )
