"""Encrypts secrets in the inbox with Airflow's Fernet key, in the same way as Airflow encrypts its connections."""

from __future__ import annotations

from typing import Any

from airflow.sdk.crypto import get_fernet

from deferrable_ops.exceptions import DeploymentError


def airflow_fernet(what: str) -> Any:
    """Return the Fernet object for ``[core] fernet_key``.

    :param what: a part of the error message: the name of what the key encrypts, followed by "is" or "are". For example,
        ``"channels' secrets are"``.
    :raises DeploymentError: if the Fernet key is malformed.
    """
    try:
        return get_fernet()
    except Exception as error:
        # Airflow's message does not name the setting.
        raise DeploymentError(
            f"[core] fernet_key is missing or malformed ({error}); set the same key on all Airflow machines, "
            f"because {what} encrypted with this key"
        ) from None
