"""Reads an Airflow connection of the type Kafka.

The field ``extra`` of the connection contains settings of librdkafka. This module converts these settings to arguments
of aiokafka.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from deferrable_ops.exceptions import ConfigurationError

_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER")
# librdkafka's aliases.
_ALIASES: Final = {
    "metadata.broker.list": "bootstrap.servers",
    "sasl.mechanisms": "sasl.mechanism",
    "max.partition.fetch.bytes": "fetch.message.max.bytes",
}
# Prefixes of security settings. An unknown setting with one of these prefixes is an error; it is never ignored.
_SECURITY_PREFIXES: Final = ("ssl.", "sasl.", "security.", "enable.ssl.")
_KNOWN: Final = frozenset(
    {
        "enable.ssl.certificate.verification",
        "sasl.kerberos.service.name",
        "sasl.mechanism",
        "sasl.oauthbearer.client.id",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.method",
        "sasl.oauthbearer.scope",
        "sasl.oauthbearer.token.endpoint.url",
        "sasl.password",
        "sasl.username",
        "security.protocol",
        "ssl.ca.location",
        "ssl.ca.pem",
        "ssl.certificate.location",
        "ssl.certificate.pem",
        "ssl.endpoint.identification.algorithm",
        "ssl.key.location",
        "ssl.key.password",
    }
)
# These settings configure the ticket cache of librdkafka or the JVM. This library uses the operating system's ticket
# cache.
_IGNORED: Final = ("sasl.kerberos.", "sasl.login.")
_ISOLATIONS: Final = ("read_committed", "read_uncommitted")


class KafkaAirflowConnection(Protocol):
    """The attributes that this module reads from an Airflow connection."""

    conn_id: str
    host: str | None
    port: int | None
    login: str | None
    password: str | None


@dataclass(frozen=True, slots=True)
class OAuthSettings:
    """The settings with which the library requests an OAuth token, with the client credentials grant of OpenID
    Connect.
    """

    endpoint: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The settings with which the library connects to a Kafka cluster. The ``repr`` of this class contains no secrets.

    :param servers: the bootstrap servers as ``host:port``, separated by commas.
    :param protocol: the security protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
    :param tls: librdkafka's settings that begin with ``ssl.``, such as the trusted certificate authorities and the
        client's certificate.
    """

    conn_id: str
    servers: str
    protocol: str
    mechanism: str
    username: str | None
    password: str | None = field(repr=False)
    kerberos_service: str = "kafka"
    oauth: OAuthSettings | None = None
    tls: Mapping[str, Any] = field(default_factory=dict, repr=False)
    client_id: str = "deferrable-ops"
    rack: str | None = None
    isolation: str = "read_committed"
    partition_bytes: int = 1_048_576

    def secrets(self) -> list[str]:
        """The values that must not appear in logs or messages."""
        found = [self.password, self.tls.get("ssl.key.password"), self.oauth and self.oauth.client_secret]
        return [str(secret) for secret in found if secret]

    def without_secrets(self, text: object) -> str:
        """Return the text with the secrets of the Airflow connection replaced by asterisks."""
        shown = str(text)
        for secret in self.secrets():
            shown = shown.replace(secret, "***")
        return shown


def kafka_settings(connection: KafkaAirflowConnection, extra: Any) -> ClusterSettings:
    """Return the settings that an Airflow connection of the type Kafka contains.

    The field ``extra`` of the connection contains settings of librdkafka, as the documentation of the kafka provider
    describes. Settings for consumer groups and producers are ignored. If ``extra`` contains no server, user name or
    password, the field ``host``, ``login`` or ``password`` of the connection is used instead.

    :param extra: the field ``extra`` of the connection, parsed from JSON.
    :raises ConfigurationError: if a setting is missing or malformed, or if a setting for security is unknown.
    """
    conn_id = connection.conn_id
    extra = _normalized_extra(conn_id, extra)
    host = connection.host and (
        f"{connection.host}:{connection.port}" if connection.port else connection.host
    )
    servers = extra.get("bootstrap.servers") or host
    if not servers:
        raise ConfigurationError(
            f"the connection {conn_id!r} has no bootstrap.servers; add it to the extra, e.g. "
            '{"bootstrap.servers": "host:9092"}'
        )
    username = _text(extra, "sasl.username") or connection.login
    mechanism = (_text(extra, "sasl.mechanism") or "").upper()
    default = "PLAINTEXT" if not mechanism else "SASL_PLAINTEXT"
    protocol = (_text(extra, "security.protocol") or default).upper()
    _check_choice(conn_id, "security.protocol", protocol, _PROTOCOLS)
    if protocol.startswith("SASL"):
        mechanism = mechanism or ("GSSAPI" if username is None else "PLAIN")
        _check_choice(conn_id, "sasl.mechanism", mechanism, _MECHANISMS)
    _check_security_settings(conn_id, extra)
    isolation = _text(extra, "isolation.level") or "read_committed"
    _check_choice(conn_id, "isolation.level", isolation, _ISOLATIONS)
    settings = ClusterSettings(
        conn_id=conn_id,
        servers=servers if isinstance(servers, str) else ",".join(map(str, servers)),
        protocol=protocol,
        mechanism=mechanism,
        username=username,
        password=_text(extra, "sasl.password") or connection.password,
        kerberos_service=_text(extra, "sasl.kerberos.service.name") or "kafka",
        oauth=_oauth(conn_id, extra) if mechanism == "OAUTHBEARER" else None,
        tls={name: value for name, value in extra.items() if name.startswith(("ssl.", "enable.ssl."))},
        client_id=_text(extra, "client.id") or "deferrable-ops",
        rack=_text(extra, "client.rack"),
        isolation=isolation,
        partition_bytes=_number(conn_id, extra, "fetch.message.max.bytes", 1_048_576),
    )
    if mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512") and not (
        settings.username and settings.password
    ):
        raise ConfigurationError(
            f"the connection {conn_id!r} has sasl.mechanism {mechanism} but no sasl.username or sasl.password; "
            "add them to the extra, or set the connection's login and password"
        )
    return settings


def tls_context(settings: ClusterSettings) -> ssl.SSLContext | None:
    """Return the TLS context for connections to a Kafka cluster; None if the cluster's protocol does not use TLS.

    Call this function in a thread, because it reads certificate files, which blocks.

    :raises ConfigurationError: if a certificate file cannot be read, or a certificate is invalid.
    """
    if settings.protocol not in ("SSL", "SASL_SSL"):
        return None
    tls = settings.tls
    location = tls.get("ssl.ca.location")
    # In librdkafka, these values select the operating system's trusted authorities.
    if location in ("", "probe"):
        location = None
    try:
        context = ssl.create_default_context(cafile=location, cadata=tls.get("ssl.ca.pem"))
        if "ssl.certificate.pem" in tls:
            raise ConfigurationError(
                f"the connection {settings.conn_id!r} has ssl.certificate.pem, but Python can read a client "
                "certificate only from a file; set ssl.certificate.location and ssl.key.location instead"
            )
        if tls.get("ssl.certificate.location"):
            context.load_cert_chain(
                tls["ssl.certificate.location"],
                tls.get("ssl.key.location"),
                # Pass an empty password instead of None, so that OpenSSL does not prompt on a terminal.
                tls.get("ssl.key.password") or "",
            )
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the TLS settings of the connection {settings.conn_id!r} cannot be loaded; check the settings "
            f"that begin with ssl.: {settings.without_secrets(error)}"
        ) from None
    if str(tls.get("ssl.endpoint.identification.algorithm", "https")).lower() in ("none", ""):
        context.check_hostname = False
    if not _is_true(tls.get("enable.ssl.certificate.verification", True)):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _normalized_extra(conn_id: str, extra: Any) -> dict[str, Any]:
    if not isinstance(extra, Mapping):
        raise ConfigurationError(
            f"the extra of the connection {conn_id!r} is not a JSON object; write librdkafka settings, e.g. "
            '{"bootstrap.servers": "host:9092"}'
        )
    return {_ALIASES.get(str(name), str(name)): value for name, value in extra.items() if value is not None}


def _check_security_settings(conn_id: str, extra: Mapping[str, Any]) -> None:
    unknown = sorted(
        name
        for name in extra
        if name.startswith(_SECURITY_PREFIXES) and name not in _KNOWN and not name.startswith(_IGNORED)
    )
    if unknown:
        raise ConfigurationError(
            f"the connection {conn_id!r} has unsupported security settings: {', '.join(unknown)}; remove them, or "
            f"use one of the supported ones: {', '.join(sorted(_KNOWN))}"
        )


def _oauth(conn_id: str, extra: Mapping[str, Any]) -> OAuthSettings:
    names = [f"sasl.oauthbearer.{name}" for name in ("token.endpoint.url", "client.id", "client.secret")]
    values = [_text(extra, name) for name in names]
    if str(extra.get("sasl.oauthbearer.method", "")).lower() != "oidc" or not all(values):
        raise ConfigurationError(
            f"the connection {conn_id!r} has sasl.mechanism OAUTHBEARER without all its settings; set "
            f"sasl.oauthbearer.method=oidc, and also set {', '.join(names)}"
        )
    endpoint, client_id, client_secret = map(str, values)
    return OAuthSettings(endpoint, client_id, client_secret, _text(extra, "sasl.oauthbearer.scope"))


def _check_choice(conn_id: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigurationError(
            f"the connection {conn_id!r} has {name}={json.dumps(value)}, which is not supported; write one of "
            f"{', '.join(allowed)}"
        )


def _text(extra: Mapping[str, Any], name: str) -> str | None:
    value = extra.get(name)
    return None if value is None or value == "" else str(value)


def _number(conn_id: str, extra: Mapping[str, Any], name: str, default: int) -> int:
    try:
        number = int(extra.get(name, default))
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ConfigurationError(
            f"the connection {conn_id!r} has {name}={extra[name]!r}, which is not a positive whole number; write a "
            "number of bytes"
        )
    return number


def _is_true(value: object) -> bool:
    return str(value).lower() not in ("false", "0", "no", "f", "n")
