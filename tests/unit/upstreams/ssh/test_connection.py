"""Airflow's SSH connection is interpreted as by the ssh provider, and secrets are masked."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.models.connection import Connection

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.upstreams.ssh.connection import SshSettings, ssh_settings

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB"


def read(
    extra: Any = None, /, host: str | None = "web-3", port: int | None = None, **where: Any
) -> SshSettings:
    connection = Connection(
        conn_id="web", conn_type="ssh", host=host, port=port, login="airflow", password=" pa55 "
    )
    return ssh_settings(connection, {} if extra is None else extra, **where)


def test_defaults_check_the_host_key_and_limit_the_time() -> None:
    found = read()
    assert (found.name, found.port, found.password) == ("airflow@web-3:22", 22, "pa55")
    assert (found.check_host_key, found.known_hosts, found.host_key) == (True, None, None)
    assert (found.connect_seconds, found.command_seconds, found.look_for_keys) == (10, 30, True)
    assert read(host="::1", port=2222).name == "airflow@[::1]:2222"


def test_connection_without_a_login_uses_the_local_user(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(conn_id="web", conn_type="ssh", host="web-3")
    monkeypatch.setattr("getpass.getuser", lambda: "airflow-here")
    assert ssh_settings(connection, {}).username == "airflow-here"

    def nameless() -> str:
        raise KeyError("uid not found: 1000660000")

    monkeypatch.setattr("getpass.getuser", nameless)
    with pytest.raises(ConfigurationError, match="has no login, and the user of this process"):
        ssh_settings(connection, {})


def test_extra_is_read_as_by_the_provider() -> None:
    found = read(
        {
            "private_key": KEY,
            "private_key_passphrase": "hush",
            "host_key": f"{HOST_KEY} comment",
            "conn_timeout": "5",
            "cmd_timeout": 2.5,
            "ciphers": ["aes256-ctr"],
            "disabled_algorithms": {"pubkeys": ["rsa-sha2-256"]},
            "look_for_keys": "false",
            "no_host_key_check": False,
            "allow_host_key_change": "False",
            "compress": "false",
            "host_proxy_cmd": "nc secret-proxy 22",
        }
    )
    assert (found.private_key, found.passphrase, found.key_file) == (KEY, "hush", None)
    assert (found.host_key, found.check_host_key) == (HOST_KEY, True)
    assert (found.connect_seconds, found.command_seconds) == (5, 2.5)
    assert (found.ciphers, found.disabled) == (("aes256-ctr",), {"pubkeys": ("rsa-sha2-256",)})
    assert (found.look_for_keys, found.proxy_command) == (False, "nc secret-proxy 22")
    for secret in (KEY, "hush", "pa55", "nc secret-proxy 22"):
        assert secret not in repr(found)
        assert found.without_secrets(f"refused: {secret}!") == "refused: ***!"


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"host_key": "AAAAB3NzaC1yc2E"}, ("ssh-rsa AAAAB3NzaC1yc2E", None, True)),
        ({"known_hosts": "/etc/hosts-we-know"}, (None, "/etc/hosts-we-know", True)),
        ({"known_hosts": "None"}, (None, None, False)),
        ({"known_hosts": "none", "host_key": HOST_KEY}, (HOST_KEY, None, True)),
        ({"no_host_key_check": "True"}, (None, None, False)),
        ({"ignore_hostkey_verification": True}, (None, None, False)),
        ({"ignore_hostkey_verification": True, "no_host_key_check": "false"}, (None, None, True)),
        ({"host_key": "", "no_host_key_check": ""}, (None, None, True)),
    ],
)
def test_host_key_settings(extra: dict[str, Any], expected: Any) -> None:
    found = read(extra)
    assert (found.host_key, found.known_hosts, found.check_host_key) == expected


def test_arguments_override_the_connection() -> None:
    extra = {"conn_timeout": 5, "cmd_timeout": 6}
    found = read(extra, remote_host="web-4", connect_timeout=1.5)
    assert (found.host, found.connect_seconds, found.command_seconds) == ("web-4", 1.5, 6)
    assert read(host=None, remote_host="web-4").host == "web-4"
    assert read({"timeout": 7}).connect_seconds == 7
    assert read({"cmd_timeout": None}).command_seconds == 30


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ([1], "must be a JSON object with settings"),
        ({"private_key": KEY, "key_file": "/k"}, "both private_key and key_file"),
        ({"host_key": HOST_KEY, "no_host_key_check": True}, "both host_key and no_host_key_check"),
        ({"allow_host_key_change": "true"}, "would disable the check of the host key"),
        ({"host_keys": "x"}, "unknown security settings: host_keys"),
        ({"strict_host_key_checking": "no"}, "unknown security settings"),
        ({"no_host_key_check": "yes"}, "must be true or false"),
        ({"conn_timeout": "soon"}, "must be a number of seconds"),
        ({"cmd_timeout": -1}, "must be a number of seconds"),
        ({"private_key": {"hush": 1}}, "private_key of the connection 'web' must be a string"),
        ({"ciphers": "aes256-ctr"}, "ciphers of the connection 'web' must be a list"),
        ({"disabled_algorithms": {"all": []}}, "must be a JSON object of lists"),
        ({"disabled_algorithms": ["x"]}, "must be a JSON object of lists"),
    ],
)
def test_invalid_extra_is_refused(extra: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        read(extra)
    assert "'web'" in str(refused.value)
    assert "hush" not in str(refused.value)
    assert "c2VjcmV0" not in str(refused.value)


def test_connection_without_a_host_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="has no host"):
        read(host=None)
