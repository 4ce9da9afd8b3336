"""Loads the Google credentials of an Airflow connection or of the machine.

Loading blocks, so load the credentials in a thread.
"""

from __future__ import annotations

import json
import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deferrable_ops import settings
from deferrable_ops.exceptions import (
    ConfigurationError,
    DataflowRefused,
    DataflowUnavailable,
    DeferrableOpsError,
    MissingCredentials,
)
from deferrable_ops.upstreams.connection_extra import UnknownConnection, missing_connection, team_connection

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.auth.exceptions import GoogleAuthError

SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)

# The google provider uses this connection by default.
_DEFAULT_CONNECTION: Final = "google_cloud_default"

# The statuses with which IAM refuses to issue a token.
_REFUSED_STATUSES: Final = (400, 401, 403)


class _NoProvider(ConfigurationError):
    """Raised if Airflow's google provider is not installed."""


class LoadedCredentials(NamedTuple):
    """Google credentials, with their project and their universe domain. The project is None if the credentials name no
    project.
    """

    credentials: Credentials
    project_id: str | None
    universe_domain: str = "googleapis.com"


def load_credentials(gcp_conn_id: str | None, impersonation_chain: tuple[str, ...]) -> LoadedCredentials:
    """Return the Google credentials and their project. The function also requests a first access token with the
    credentials.

    Without this first token, revoked credentials and a network failure would cause the same error in an API call over
    gRPC.

    :param gcp_conn_id: the id of the Airflow connection that contains the credentials. If `gcp_conn_id` is None, the
        connection ``google_cloud_default`` is used. Without this connection or without the google provider, the
        application default credentials are used.
    :param impersonation_chain: the Google service accounts to impersonate, one after the other. The last account makes
        the API calls. An empty tuple impersonates no account.
    :raises ConfigurationError: if the credentials are malformed, or the connection or the google provider is missing.
    :raises MissingCredentials: if the machine has no application default credentials, or its metadata server does not
        answer.
    :raises DataflowRefused: if Google refused the credentials. A single refusal may be a temporary error.
    :raises DataflowUnavailable: if Google issued no token for another reason.
    """
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    scoping: Any = import_module("google.auth.credentials")
    account = describe_account(gcp_conn_id, impersonation_chain)
    try:
        if gcp_conn_id is not None:
            loaded = _connection_credentials(gcp_conn_id, impersonation_chain)
        else:
            loaded = _default_credentials(impersonation_chain)
        scoping.with_scopes_if_required(loaded.credentials, SCOPES).refresh(Request())
        # This property may ask the metadata server.
        universe = getattr(loaded.credentials, "universe_domain", None)
    except GoogleAuthError as error:
        raise _translated(error, account) from error
    universe = os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN") or universe or loaded.universe_domain
    return loaded._replace(universe_domain=universe)


def describe_account(gcp_conn_id: str | None, impersonation_chain: tuple[str, ...]) -> str:
    """Return a description of the Google account, for messages."""
    source = (
        f"the account of the connection {gcp_conn_id!r}"
        if gcp_conn_id
        else f"the default account (connection {_DEFAULT_CONNECTION!r}, or the application default credentials)"
    )
    return f"{impersonation_chain[-1]} (impersonated by {source})" if impersonation_chain else source


def _connection_credentials(gcp_conn_id: str, impersonation_chain: tuple[str, ...]) -> LoadedCredentials:
    from google.auth.exceptions import GoogleAuthError

    try:
        from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    except ImportError as missing:
        raise _NoProvider(
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
        return LoadedCredentials(*hook.get_credentials_and_project_id())
    except AirflowNotFoundException as error:
        raise UnknownConnection(missing_connection(gcp_conn_id, error)) from error
    except GoogleAuthError:
        raise
    except (AirflowException, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"could not get credentials from the connection {gcp_conn_id!r}; correct its settings: {error}"
        ) from error
    except Exception as error:
        # Airflow did not return the connection.
        raise DataflowUnavailable(
            f"could not read the connection {gcp_conn_id!r} ({type(error).__name__})"
        ) from error


def _default_credentials(impersonation_chain: tuple[str, ...]) -> LoadedCredentials:
    import google.auth

    try:
        return _connection_credentials(_DEFAULT_CONNECTION, impersonation_chain)
    except _NoProvider:
        pass
    except UnknownConnection as unknown:
        if settings.team() is not None:
            # The team may have this connection, although a triggerer cannot read it.
            raise UnknownConnection(
                f"{unknown}. To use the machine's own Google credentials, "
                "define this connection as google-cloud-platform://"
            ) from None
    found, project_id = google.auth.default(scopes=SCOPES)
    if not impersonation_chain:
        return LoadedCredentials(found, project_id)
    impersonated: Any = import_module("google.auth.impersonated_credentials")
    *delegates, target = impersonation_chain
    credentials = impersonated.Credentials(
        source_credentials=found, target_principal=target, delegates=delegates, target_scopes=list(SCOPES)
    )
    return LoadedCredentials(credentials, project_id)


def is_refusal(error: Exception) -> bool:
    """Return whether Google refused the credentials: the token endpoint answered ``invalid_grant``, or IAM answered
    with the status 400, 401 or 403 and a reason.

    Any other error of google-auth is temporary: the metadata server, IAM, a proxy or the network failed. google-auth
    sets ``retryable`` only for errors of the token endpoint, so ``retryable`` does not show whether IAM refused.
    """
    from google.auth.exceptions import OAuthError, RefreshError, TransportError

    if not isinstance(error, (OAuthError, RefreshError)) or isinstance(error.__cause__, TransportError):
        return False
    if error.args and re.search(r"\binvalid_grant\b", str(error.args[0])):
        return True
    return any(_is_refusal_of_iam(part) for part in error.args)


def _is_refusal_of_iam(body: Any) -> bool:
    """Return whether a response of IAM, as a string or as JSON, is a refusal with a reason."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            return False
    problem = body.get("error") if isinstance(body, dict) else None
    return (
        isinstance(problem, dict)
        and problem.get("code") in _REFUSED_STATUSES
        and bool(problem.get("message"))
    )


def _translated(error: GoogleAuthError, account: str) -> DeferrableOpsError:
    from google.auth.exceptions import DefaultCredentialsError

    if is_refusal(error):
        return DataflowRefused(
            f"Google refused the credentials of {account}: {error}; replace the key, or grant the account "
            "roles/iam.serviceAccountTokenCreator on the account that it impersonates"
        )
    if isinstance(error, DefaultCredentialsError):
        # Without a file, the credentials may come from the metadata server, which may not answer while a machine of
        # Kubernetes Engine starts (google-auth#604, #745, #814).
        from_file = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or os.environ.get("NO_GCE_CHECK")
        return (ConfigurationError if from_file else MissingCredentials)(
            f"the triggerer has no application default credentials ({error}); set GOOGLE_APPLICATION_CREDENTIALS, run "
            "on a machine with a service account, or set gcp_conn_id="
        )
    return DataflowUnavailable(f"Google issued no token for {account}: {error}")
