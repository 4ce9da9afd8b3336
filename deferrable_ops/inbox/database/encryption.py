"""What the inbox keeps encrypted is encrypted as Airflow encrypts its connections."""

from __future__ import annotations

from typing import Any

from airflow.sdk.crypto import get_fernet

from deferrable_ops.exceptions import ConfigurationError


def airflow_fernet(what: str) -> Any:
    """Return what encrypts and decrypts with ``[core] fernet_key``.

    :param what: what is kept encrypted, for the error.
    :raises ConfigurationError: the key is malformed.
    """
    try:
        return get_fernet()
    except Exception as error:  # Airflow's own names no setting
        raise ConfigurationError(
            f"[core] fernet_key is missing or malformed ({error}): set it, to the same on all machines; "
            f"{what} kept encrypted with it"
        ) from None
