"""Airflow's AWS connection, as the amazon provider documents it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.upstreams.aws.connection import AwsSettings, Role, aws_settings

ROLE = "arn:aws:iam::112223334444:role/my_role"


@dataclass
class Connection:
    conn_id: str = "aws"
    login: str | None = None
    password: str | None = None


def settings(login: str | None = None, password: str | None = None, **extra: Any) -> AwsSettings:
    return aws_settings(Connection(login=login, password=password), extra)


def test_empty_connection_uses_the_machines_settings() -> None:
    assert settings(region_name=None, role_arn="") == AwsSettings(conn_id="aws")


@pytest.mark.parametrize(
    ("login", "password", "extra"),
    [
        ("key", "secret", {}),
        ("key", "secret", {"aws_access_key_id": "other", "aws_secret_access_key": "other"}),
        (None, None, {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}),
        (None, None, {"session_kwargs": {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}}),
    ],
)
def test_keys_are_read_where_the_provider_reads_them(
    login: str | None, password: str | None, extra: dict[str, Any]
) -> None:
    found = settings(login, password, aws_session_token="token", **extra)
    assert (found.access_key, found.secret_key, found.session_token) == ("key", "secret", "token")


@pytest.mark.parametrize(
    ("login", "password", "extra"),
    [
        ("key", None, {}),
        (None, "secret", {}),
        (None, None, {"aws_session_token": "token"}),
        (None, None, {"aws_access_key_id": "key"}),
    ],
)
def test_partial_access_key_is_an_error(
    login: str | None, password: str | None, extra: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="only a part of an access key") as refused:
        settings(login, password, **extra)
    assert "secret'" not in str(refused.value)


def test_session_and_client_settings_are_read() -> None:
    found = settings(
        region_name="eu-west-1",
        profile_name="reader",
        verify=False,
        config_kwargs={"proxies": {"https": "http://proxy:3128"}},
    )
    assert (found.region, found.profile, found.verify) == ("eu-west-1", "reader", False)
    assert found.config == {"proxies": {"https": "http://proxy:3128"}}
    assert settings(session_kwargs={"region_name": "eu-west-1"}).region == "eu-west-1"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, {}),
        # As in the provider, the common URL does not apply to STS.
        ({"endpoint_url": "http://all"}, {"sqs": "http://all"}),
        ({"endpoint_url": "http://all", "service_config": {"sqs": {"endpoint_url": None}}}, {"sqs": None}),
        (
            {"endpoint_url": "http://all", "service_config": {"sqs": {"endpoint_url": "http://own"}}},
            {"sqs": "http://own"},
        ),
        ({"service_config": {"sts": {"endpoint_url": "http://sts"}, "s3": {}}}, {"sts": "http://sts"}),
    ],
)
def test_service_endpoint_overrides_the_common_endpoint(
    extra: dict[str, Any], expected: dict[str, str | None]
) -> None:
    assert settings(**extra).endpoints == expected


def test_role_is_read() -> None:
    arguments = {"ExternalId": "x", "DurationSeconds": 900}
    assert settings(role_arn=ROLE, assume_role_kwargs=arguments).role == Role(ROLE, arguments)
    web = {"role_arn": ROLE, "assume_role_method": "assume_role_with_web_identity"}
    assert settings(**web).role == Role(ROLE, token_file="")
    file = {"assume_role_with_web_identity_token_file": "/token"}
    assert settings(**web, **file).role == Role(ROLE, token_file="/token")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"role_arn": ROLE, "assume_role_method": "assume_role_with_saml"}, "assume_role_method"),
        (
            {
                "role_arn": ROLE,
                "assume_role_method": "assume_role_with_web_identity",
                "assume_role_with_web_identity_federation": "google",
            },
            "'file'",
        ),
        ({"verify": "False"}, "without quotes"),
        ({"verify": 3}, "without quotes"),
        ({"config_kwargs": "x"}, "config_kwargs that is not a JSON object"),
        ({"service_config": {"sqs": "http://x"}}, "sqs that is not a JSON object"),
        ({"region_name": 3}, "region_name that is not a string"),
        ({"session_kwargs": {"botocore_session": 1}}, "botocore_session"),
    ],
)
def test_invalid_setting_is_an_error(extra: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        settings(**extra)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aws_iam_role", "role_arn"),
        ("external_id", "assume_role_kwargs"),
        ("profile", "profile_name"),
        ("host", "endpoint_url"),
        ("role_name", "role_name"),
        ("verify_ssl", "verify_ssl"),
        ("session_token", "session_token"),
        ("s3_config_file", "s3_config_file"),
    ],
)
def test_unknown_security_setting_is_an_error(name: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as refused:
        settings(**{name: "hush-hush"})
    assert expected in str(refused.value)
    assert "hush-hush" not in str(refused.value)


def test_setting_of_another_service_is_ignored() -> None:
    assert settings(s3_bucket="x", emr_conf={}) == AwsSettings(conn_id="aws")


def test_extra_must_be_a_json_object() -> None:
    with pytest.raises(ConfigurationError, match="JSON object"):
        aws_settings(Connection(), ["region_name"])


def test_no_secret_is_shown() -> None:
    found = settings(
        "key",
        "the-secret",
        aws_session_token="the-token",
        role_arn=ROLE,
        assume_role_kwargs={"ExternalId": "the-external-id"},
        config_kwargs={"proxies": {"https": "http://me:the-password@proxy"}},
    )
    secrets = ("the-secret", "the-token", "the-external-id", "the-password")
    assert not [secret for secret in secrets if secret in repr(found)]
    text = found.without_secrets("the-secret the-token the-external-id http://me:the-password@proxy")
    assert text == "*** *** *** ***"
    assert found.identity == f"{ROLE} (assumed by the connection 'aws')"
