"""Reads Airflow connections in a triggerer.

With the Airflow setting ``[core] multi_team``, a connection can belong to a team. Airflow's API inside a triggerer does
not know the team of a task, so the API returns only connections that belong to no team. Therefore a triggerer of a team
uses only the connections that the secrets backends of this process have for the team: see :func:`team_connection`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from typing import Any, Final

from deferrable_ops import settings
from deferrable_ops.exceptions import AirflowUnavailable, ConfigurationError
from deferrable_ops.supervisor_calls import Rank, call_supervisor

# In seconds. The triggerer's supervisor process handles requests for connections one at a time, so an answer may take
# long. The process may also drop a request.
_TIMEOUT: Final = 60.0


_LIMIT: Final = "does not give triggerers the connections of a team that are stored in the metadata database"


class UnknownConnection(ConfigurationError):
    """Raised if Airflow has no connection with the given id."""


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

    Return None if this process belongs to no team. On a worker, return None also if the backends have no such
    connection: a worker can then ask Airflow's API, which knows the worker's team. Call this function in a thread,
    because it may block.

    :raises UnknownConnection: if the backends have no such connection, and this process is a triggerer. A connection
        without a team is not used instead: the team may have a connection with the same id in Airflow's database, and
        the work would be launched or cancelled in the wrong system.
    :raises AirflowUnavailable: if a secrets backend failed.
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
    if settings.airflow_knows_team():
        return None
    raise UnknownConnection(missing_connection(conn_id))


def missing_connection(conn_id: str, error: Exception | None = None) -> str:
    """Return an error message about an id for which Airflow has no connection. The message shows how to create the
    connection.
    """
    team = settings.team()
    if team is None:
        return f"there is no connection {conn_id!r}; create it ({error})"
    return (
        f"there is no connection {conn_id!r} that a triggerer of the team {team} can read, because Airflow {_LIMIT}. "
        f"Define {_variable(conn_id, team)} in the environment of the team's triggerers, or use a secrets backend that "
        "supports teams. A connection without a team is not used"
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
