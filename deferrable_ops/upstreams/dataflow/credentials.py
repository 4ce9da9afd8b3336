"""Loads the Google credentials of an Airflow connection or of the machine.

Loading blocks, so load the credentials in a thread.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from deferrable_ops.error_table import ErrorKind, kind_of_code
from deferrable_ops.exceptions import ConfigurationError, DataflowRefused
from deferrable_ops.upstreams.connection_extra import missing_connection, team_connection

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)


def load_credentials(gcp_conn_id: str | None, impersonation_chain: tuple[str, ...]) -> Credentials:
    """Return the Google credentials, after fetching a first token with them.

    :param gcp_conn_id: the id of the Airflow connection that contains the credentials. If `gcp_conn_id` is None, the
        application default credentials are used.
    :param impersonation_chain: the Google service accounts to impersonate, one after the other. The last account makes
        the API calls. An empty tuple impersonates no account.
    :raises ConfigurationError: if Google credentials were not found, or the google provider is missing.
    :raises DataflowRefused: if Google refused the credentials.
    """
    if gcp_conn_id is not None:
        credentials = _connection_credentials(gcp_conn_id, impersonation_chain)
    else:
        credentials = _default_credentials(impersonation_chain)
    _fetch_token(credentials, describe_account(gcp_conn_id, impersonation_chain))
    return credentials


def describe_account(gcp_conn_id: str | None, impersonation_chain: tuple[str, ...]) -> str:
    """Return a description of the Google account, for messages."""
    source = (
        f"the account of the connection {gcp_conn_id!r}"
        if gcp_conn_id
        else "the account of the application default credentials"
    )
    return f"{impersonation_chain[-1]} (impersonated by {source})" if impersonation_chain else source


def _connection_credentials(gcp_conn_id: str, impersonation_chain: tuple[str, ...]) -> Credentials:
    try:
        from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    except ImportError as missing:
        raise ConfigurationError(
            f"gcp_conn_id={gcp_conn_id!r} needs the google provider, which is not installed here; run "
            "pip install apache-airflow-providers-google, or omit gcp_conn_id to use the application default "
            "credentials"
        ) from missing
    from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

    of_team = team_connection(gcp_conn_id)

    hook_class: Any = GoogleBaseHook
    if of_team is not None:
        # The hook itself reads only connections without a team.
        hook_class = type("TeamHook", (GoogleBaseHook,), {"get_connection": lambda *_: of_team})
    try:
        hook = hook_class(gcp_conn_id=gcp_conn_id, impersonation_chain=list(impersonation_chain) or None)
        return cast("Credentials", hook.get_credentials())
    except AirflowNotFoundException as error:
        raise ConfigurationError(missing_connection(gcp_conn_id, error)) from error
    except AirflowException as error:
        raise ConfigurationError(
            f"could not get credentials from the connection {gcp_conn_id!r}: {error}"
        ) from error


def _default_credentials(impersonation_chain: tuple[str, ...]) -> Credentials:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        found, _project = google.auth.default(scopes=SCOPES)
    except DefaultCredentialsError as error:
        raise ConfigurationError(
            f"the triggerer has no application default credentials ({error}); set GOOGLE_APPLICATION_CREDENTIALS, run "
            "on a machine with a service account, or set gcp_conn_id="
        ) from error
    if not impersonation_chain:
        return found
    impersonated: Any = import_module("google.auth.impersonated_credentials")
    *delegates, target = impersonation_chain
    return cast(
        "Credentials",
        impersonated.Credentials(
            source_credentials=found,
            target_principal=target,
            delegates=delegates,
            target_scopes=list(SCOPES),
        ),
    )


def is_temporary(error: Exception) -> bool:
    """Return whether an error of google-auth may be temporary: the metadata server, IAM or the network did not
    respond.

    google-auth marks an error as retryable only if the OAuth endpoint returned the error. An error of IAM or of the
    metadata server is temporary if its HTTP status is temporary, or if a network error caused it.
    """
    from google.auth.exceptions import RefreshError, TransportError

    if isinstance(error, TransportError) or isinstance(error.__cause__, TransportError):
        return True
    if not isinstance(error, RefreshError):
        return False
    text = " ".join(str(part) for part in error.args)
    statuses = re.findall(r"\b(?:status|code)\D{0,6}(\d{3})\b", text, re.IGNORECASE)
    return bool(error.retryable) or kind_of_code("http", *statuses) is ErrorKind.TEMPORARY


def _fetch_token(credentials: Credentials, account: str) -> None:
    """Fetch a token to test the credentials.

    This test is needed because an API call over gRPC raises the same error for revoked credentials as for a network
    failure.
    """
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    scoping: Any = import_module("google.auth.credentials")
    try:
        scoping.with_scopes_if_required(credentials, SCOPES).refresh(Request())
    except GoogleAuthError as error:
        # A temporary error does not matter here: the calls that use the credentials are retried.
        if is_temporary(error):
            return
        raise DataflowRefused(
            f"Google refused the credentials of {account}: {error}; replace the key, or grant the account "
            "roles/iam.serviceAccountTokenCreator on the account that it impersonates"
        ) from error
