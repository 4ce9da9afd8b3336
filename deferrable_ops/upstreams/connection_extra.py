"""Airflow's connections, as a triggerer can read them."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from deferrable_ops.exceptions import ConfigurationError

_SECONDS: Final = 60.0  # Airflow serves such questions one at a time, and may drop them


class UnknownConnection(ConfigurationError):
    """Airflow has no connection of this id."""


async def read_connection(conn_id: str) -> tuple[Any, Any]:
    """Return an Airflow connection and its extra, which is masked in logs from then on.

    :raises UnknownConnection: there is none of this id.
    :raises ConfigurationError: it cannot be read, or its extra is no JSON.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

    try:
        async with asyncio.timeout(_SECONDS):
            connection = await BaseHook.aget_connection(conn_id)
            extra = await connection.aextra_dejson()
    except TimeoutError:
        raise ConfigurationError(
            f"Airflow did not say within {_SECONDS:g} s what the connection {conn_id!r} is"
        ) from None
    except AirflowNotFoundException as error:
        raise UnknownConnection(f"there is no connection {conn_id!r}: {error}") from None
    except AirflowException as error:
        raise ConfigurationError(f"the connection {conn_id!r} cannot be read: {error}") from None
    # Airflow makes {} of an extra that is no JSON, with which other credentials would be used than are meant.
    if connection.extra and not extra and "".join(connection.extra.split()) not in ("{}", "null"):
        raise ConfigurationError(f"the extra of the connection {conn_id!r} is no JSON; write it as JSON")
    return connection, extra
