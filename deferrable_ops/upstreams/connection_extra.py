"""Reads Airflow connections in a triggerer."""

from __future__ import annotations

from typing import Any, Final

from deferrable_ops.exceptions import AirflowUnavailable, ConfigurationError
from deferrable_ops.supervisor_calls import Rank, call_supervisor

# In seconds. The triggerer's supervisor process handles requests for connections one at a time, so an answer may take
# long. The process may also drop a request.
_TIMEOUT: Final = 60.0


class UnknownConnection(ConfigurationError):
    """Airflow has no connection with this id."""


async def read_connection(conn_id: str, *, timeout: float = _TIMEOUT) -> tuple[Any, Any]:
    """Return an Airflow connection, and the content of its field ``extra``. After this call, Airflow masks the values
    in ``extra`` in all logs of this process.

    :param timeout: the longest time in seconds to wait until Airflow returns the connection.
    :raises UnknownConnection: if Airflow has no connection with this id.
    :raises AirflowUnavailable: if Airflow does not return the connection within the timeout, or cannot read it now.
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
        raise UnknownConnection(f"there is no connection {conn_id!r}; create it ({error})") from None
    except AirflowException as error:
        raise AirflowUnavailable(f"could not read the connection {conn_id!r}: {error}") from None
    # Airflow returns {} for an extra that is not JSON. Without this check, default credentials would be used.
    if connection.extra and not extra and "".join(connection.extra.split()) not in ("{}", "null"):
        raise ConfigurationError(f"the extra of the connection {conn_id!r} is not JSON; write it as JSON")
    return connection, extra


async def _read(conn_id: str) -> tuple[Any, Any]:
    from airflow.sdk import BaseHook

    connection = await BaseHook.aget_connection(conn_id)
    return connection, await connection.aextra_dejson()
