"""Reads an Airflow connection of the type Amazon Web Services, with the settings that the amazon provider documents.

The amazon provider does not have to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from deferrable_ops.exceptions import ConfigurationError

_ASSUME_ROLE, _WEB_IDENTITY = "assume_role", "assume_role_with_web_identity"
_KEYS: Final = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_KNOWN: Final = frozenset(
    {
        *_KEYS,
        "assume_role_kwargs",
        "assume_role_method",
        "assume_role_with_web_identity_federation",
        "assume_role_with_web_identity_token_file",
        "config_kwargs",
        "endpoint_url",
        "profile_name",
        "region_name",
        "role_arn",
        "service_config",
        "session_kwargs",
        "verify",
    }
)
# Prefixes of settings for credentials, trust and endpoints. An unknown setting with one of these prefixes is an error;
# it is never ignored.
_SECURITY_PREFIXES: Final = (
    "assume_",
    "aws_",
    "config",
    "credential",
    "endpoint",
    "external_id",
    "host",
    "mfa",
    "profile",
    "region",
    "role",
    "s3_config",
    "session",
    "sso",
    "verify",
    "web_identity",
)
_ALTERNATIVES: Final = {
    "assume_role_with_saml": "SAML is not supported; use a profile with credential_process",
    "assume_role_with_web_identity_federation_audience": "remove it; only token files are supported",
    "aws_iam_role": "use role_arn",
    "external_id": 'use assume_role_kwargs: {"ExternalId": ...}',
    "host": "use endpoint_url",
    "profile": "use profile_name",
}
_SESSION: Final = frozenset({*_KEYS, "region_name", "profile_name"})


class AwsAirflowConnection(Protocol):
    """The attributes of an Airflow connection that this module reads."""

    conn_id: str
    login: str | None
    password: str | None


@dataclass(frozen=True, slots=True)
class Role:
    """An AWS role whose permissions the library uses for its calls.

    :param arguments: further arguments of the STS call that returns the role's credentials, such as ExternalId or
        DurationSeconds.
    :param token_file: path of the file with a web identity token, with which the library gets the role's credentials.
        If ``token_file`` is None, the library gets the role's credentials with the credentials of the Airflow
        connection.
    """

    arn: str
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)
    token_file: str | None = None


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """The settings with which the library calls AWS. The ``repr`` of this class contains no secrets.

    :param conn_id: the id of the Airflow connection, for messages. ``conn_id`` is None if the credentials come from the
        machine and not from an Airflow connection.
    :param access_key: the AWS access key id. If ``access_key`` is None, botocore reads the credentials of ``profile``.
        If ``profile`` is also None, botocore searches for credentials on the machine, for example in environment
        variables.
    :param endpoints: the URLs that the connection sets for AWS services, by the name of the service.
    :param verify: True or False: whether TLS certificates are verified. A string is the path of a file with trusted
        certificate authorities. If `verify` is None, botocore's default applies.
    :param config: arguments with which botocore's ``Config`` is created.
    """

    conn_id: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
    region: str | None = None
    role: Role | None = None
    endpoints: Mapping[str, str | None] = field(default_factory=dict)
    verify: bool | str | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> str:
        """The name of the role or of the Airflow connection whose credentials are used, for messages."""
        owner = f"the connection {self.conn_id!r}" if self.conn_id else "this machine's own credentials"
        return f"{self.role.arn} (assumed by {owner})" if self.role else owner

    def without_secrets(self, text: object) -> str:
        """Return the text with the secrets of the Airflow connection replaced by asterisks."""
        shown = str(text)
        for secret in self._secrets():
            shown = shown.replace(secret, "***")
        return shown

    def _secrets(self) -> list[str]:
        proxies = self.config.get("proxies")
        behind = (
            [str(url) for url in proxies.values() if "@" in str(url)] if isinstance(proxies, dict) else []
        )
        given = self.role.arguments.values() if self.role else ()
        tokens = [value for value in given if isinstance(value, str) and len(value) >= 6]
        return [secret for secret in (self.secret_key, self.session_token, *behind, *tokens) if secret]


def aws_settings(connection: AwsAirflowConnection, extra: Any) -> AwsSettings:
    """Return the settings that an Airflow connection of the type Amazon Web Services contains.

    :param extra: the field ``extra`` of the connection, parsed from JSON.
    :raises ConfigurationError: if a setting is malformed, or if the connection has an unknown setting that concerns
        credentials, certificates or endpoints.
    """
    conn_id = connection.conn_id
    if not isinstance(extra, Mapping):
        raise ConfigurationError(
            f"the extra of the connection {conn_id!r} is not a JSON object; write the amazon provider's settings, e.g. "
            '{"region_name": "eu-west-1"}'
        )
    extra = {str(name): value for name, value in extra.items() if value is not None and value != ""}
    _check_security_settings(conn_id, extra)
    session = _mapping(conn_id, extra, "session_kwargs")
    if unknown := sorted(set(session) - _SESSION):
        raise ConfigurationError(
            f"the connection {conn_id!r} has unsupported session_kwargs: {', '.join(unknown)}; remove them, or use "
            f"one of the supported ones: {', '.join(sorted(_SESSION))}"
        )
    access_key, secret_key, token = _keys(connection, extra, session)
    return AwsSettings(
        conn_id=conn_id,
        access_key=access_key,
        secret_key=secret_key,
        session_token=token,
        profile=_text(conn_id, extra, "profile_name") or _text(conn_id, session, "profile_name"),
        region=_text(conn_id, extra, "region_name") or _text(conn_id, session, "region_name"),
        role=_role(conn_id, extra),
        endpoints=_endpoints(conn_id, extra),
        verify=_verify(conn_id, extra),
        config=_mapping(conn_id, extra, "config_kwargs"),
    )


def _check_security_settings(conn_id: str, extra: Mapping[str, Any]) -> None:
    unknown = sorted(name for name in extra if name.startswith(_SECURITY_PREFIXES) and name not in _KNOWN)
    if unknown:
        named = [f"{name} ({_ALTERNATIVES[name]})" if name in _ALTERNATIVES else name for name in unknown]
        raise ConfigurationError(
            f"the connection {conn_id!r} has unsupported security settings: {', '.join(named)}; remove them, or use "
            f"one of the supported ones: {', '.join(sorted(_KNOWN))}"
        )


def _keys(
    connection: AwsAirflowConnection, extra: Mapping[str, Any], session: Mapping[str, Any]
) -> tuple[str | None, str | None, str | None]:
    conn_id = connection.conn_id
    token = _text(conn_id, extra, _KEYS[2]) or _text(conn_id, session, _KEYS[2])
    pairs = [(connection.login or None, connection.password or None)]
    pairs += [
        (_text(conn_id, where, _KEYS[0]), _text(conn_id, where, _KEYS[1])) for where in (extra, session)
    ]
    for access_key, secret_key in pairs:
        if access_key and secret_key:
            return access_key, secret_key, token
    if token or any(half for pair in pairs for half in pair):
        raise ConfigurationError(
            f"the connection {conn_id!r} has only a part of an access key; set both its login (access key id) and its "
            "password (secret access key). To use the machine's own credentials, set neither"
        )
    return None, None, None


def _role(conn_id: str, extra: Mapping[str, Any]) -> Role | None:
    arn = _text(conn_id, extra, "role_arn")
    if arn is None:
        return None
    method = _text(conn_id, extra, "assume_role_method") or _ASSUME_ROLE
    arguments = _mapping(conn_id, extra, "assume_role_kwargs")
    if method == _ASSUME_ROLE:
        return Role(arn, arguments)
    if method != _WEB_IDENTITY:
        raise ConfigurationError(
            f"the connection {conn_id!r} has assume_role_method={method!r}, which is not supported; use {_ASSUME_ROLE} "
            f"or {_WEB_IDENTITY}"
        )
    federation = extra.get("assume_role_with_web_identity_federation", "file")
    if federation != "file":
        raise ConfigurationError(
            f"the connection {conn_id!r} has assume_role_with_web_identity_federation={federation!r}, which is not "
            "supported; use 'file'"
        )
    return Role(
        arn, arguments, token_file=_text(conn_id, extra, "assume_role_with_web_identity_token_file") or ""
    )


def _endpoints(conn_id: str, extra: Mapping[str, Any]) -> dict[str, str | None]:
    services = _mapping(conn_id, extra, "service_config")
    found: dict[str, str | None] = {}
    everywhere = _text(conn_id, extra, "endpoint_url")
    if everywhere:
        # As in the amazon provider, endpoint_url is not used for STS.
        found["sqs"] = everywhere
    for service in ("sqs", "sts"):
        of_service = _mapping(conn_id, services, service)
        # The value null selects AWS's own endpoint.
        if "endpoint_url" in of_service:
            found[service] = _text(conn_id, of_service, "endpoint_url")
    return found


def _verify(conn_id: str, extra: Mapping[str, Any]) -> bool | str | None:
    verify = extra.get("verify")
    if verify is None or isinstance(verify, bool):
        return verify
    if not isinstance(verify, str) or verify.lower() in ("true", "false"):
        raise ConfigurationError(
            f"the connection {conn_id!r} has verify={verify!r}; write true or false without quotes, or the path of a "
            "certificate file"
        )
    return verify


def _mapping(conn_id: str, where: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = where.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"the connection {conn_id!r} has a {name} that is not a JSON object; write it as {{...}}"
        )
    return {str(key): item for key, item in value.items()}


def _text(conn_id: str, where: Mapping[str, Any], name: str) -> str | None:
    value = where.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigurationError(
            f"the connection {conn_id!r} has a {name} that is not a string; write it in quotes"
        )
    return value
