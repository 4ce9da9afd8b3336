"""Airflow's Kafka connection is read as the kafka provider documents it."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.upstreams.kafka.connection import ClusterSettings, kafka_settings, tls_context


def connection(extra: Any = None, **fields: Any) -> tuple[Any, Any]:
    absent = {"host": None, "port": None, "login": None, "password": None}
    return SimpleNamespace(conn_id="logs", **{**absent, **fields}), extra or {}


def settings(**extra: Any) -> ClusterSettings:
    named = {name.replace("_", "."): value for name, value in extra.items()}
    return kafka_settings(*connection({"bootstrap.servers": "a:9092", **named}))


def test_bootstrap_servers_are_enough() -> None:
    found = kafka_settings(*connection({"bootstrap.servers": "a:9092,b:9092"}))

    assert (found.servers, found.protocol, found.isolation) == (
        "a:9092,b:9092",
        "PLAINTEXT",
        "read_committed",
    )


def test_host_is_used_without_bootstrap_servers() -> None:
    assert kafka_settings(*connection(host="a", port=9093)).servers == "a:9093"


def test_settings_of_consumer_groups_and_producers_are_ignored() -> None:
    group = {"group.id": "g", "auto.offset.reset": "earliest", "enable.auto.commit": False, "acks": "all"}

    assert kafka_settings(*connection({"bootstrap.servers": "a:9092", **group})) == settings()


@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
def test_sasl_settings_are_read(name: str) -> None:
    found = kafka_settings(
        *connection(
            {
                "bootstrap.servers": "a:9092",
                "security.protocol": "sasl_ssl",
                name: "SCRAM-SHA-512",
                "sasl.username": "me",
                "sasl.password": "hush",
            }
        )
    )

    assert (found.protocol, found.mechanism, found.username, found.password) == (
        "SASL_SSL",
        "SCRAM-SHA-512",
        "me",
        "hush",
    )


def test_login_and_password_are_used_when_the_extra_has_none() -> None:
    extra = {"bootstrap.servers": "a:9092", "security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}
    found = kafka_settings(*connection(extra, login="me", password="hush"))

    assert (found.username, found.password) == ("me", "hush")


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({}, "bootstrap.servers"),
        ({"bootstrap.servers": "a:1", "security.protocol": "TLS"}, "security.protocol"),
        (
            {"bootstrap.servers": "a:1", "security.protocol": "SASL_SSL", "sasl.mechanism": "X"},
            "sasl.mechanism",
        ),
        ({"bootstrap.servers": "a:1", "sasl.mechanism": "PLAIN", "sasl.username": "me"}, "sasl.password"),
        ({"bootstrap.servers": "a:1", "ssl.keystore.location": "k.p12"}, "ssl.keystore.location"),
        ({"bootstrap.servers": "a:1", "isolation.level": "dirty"}, "isolation.level"),
        ({"bootstrap.servers": "a:1", "fetch.message.max.bytes": "much"}, "fetch.message.max.bytes"),
        ({"bootstrap.servers": "a:1", "sasl.mechanism": "OAUTHBEARER"}, "sasl.oauthbearer.method"),
        (["a:9092"], "JSON object"),
    ],
)
def test_error_names_the_wrong_setting(extra: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        kafka_settings(*connection(extra))


def test_oauth_settings_are_read() -> None:
    found = settings(
        security_protocol="SASL_SSL",
        sasl_mechanism="OAUTHBEARER",
        sasl_oauthbearer_method="oidc",
        sasl_oauthbearer_token_endpoint_url="https://id/token",
        sasl_oauthbearer_client_id="me",
        sasl_oauthbearer_client_secret="hush",
    )

    assert found.oauth is not None
    assert (found.oauth.endpoint, found.oauth.client_id, found.oauth.client_secret) == (
        "https://id/token",
        "me",
        "hush",
    )


def test_no_secret_is_shown() -> None:
    found = settings(
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="me",
        sasl_password="hush",
        ssl_key_password="quiet",
    )

    assert "hush" not in repr(found)
    assert "quiet" not in repr(found)
    assert found.without_secrets("the key quiet of hush") == "the key *** of ***"


def test_plaintext_connection_has_no_tls_context() -> None:
    assert tls_context(settings()) is None


def test_tls_verifies_certificate_and_host_by_default() -> None:
    context = tls_context(settings(security_protocol="SSL"))
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)

    context = tls_context(settings(security_protocol="SSL", ssl_endpoint_identification_algorithm="none"))
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)

    context = tls_context(settings(security_protocol="SSL", enable_ssl_certificate_verification="false"))
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


def test_unreadable_authority_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'logs'"):
        tls_context(settings(security_protocol="SSL", ssl_ca_location=str(tmp_path / "absent.pem")))
