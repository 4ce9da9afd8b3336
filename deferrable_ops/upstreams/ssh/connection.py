"""Reads an Airflow connection of type SSH.

The settings have the same names as in the ssh provider. The ssh provider does not have to be installed.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from deferrable_ops.exceptions import ConfigurationError

_PORT: Final = 22
_CONNECT_SECONDS, _COMMAND_SECONDS = 10.0, 30.0
# Settings with these prefixes affect authentication, trust or routing. If a setting with one of these prefixes is
# unknown, it is an error: it is not ignored.
_SECURITY_PREFIXES: Final = (
    "allow",
    "cipher",
    "disabled",
    "host",
    "ignore",
    "key",
    "kex",
    "known",
    "look",
    "mac",
    "no_host",
    "passphrase",
    "password",
    "private",
    "proxy",
    "strict",
)
_KNOWN_SECURITY_SETTINGS: Final = frozenset(
    {
        "allow_host_key_change",
        "ciphers",
        "disabled_algorithms",
        "host_key",
        "host_proxy_cmd",
        "ignore_hostkey_verification",
        "key_file",
        "known_hosts",
        "look_for_keys",
        "no_host_key_check",
        "passphrase",
        "private_key",
        "private_key_passphrase",
    }
)
# paramiko's names for the kinds of algorithms. The provider uses them in disabled_algorithms.
_ALGORITHMS: Final = ("ciphers", "kex", "keys", "macs", "pubkeys")


class SshAirflowConnection(Protocol):
    """The attributes of an Airflow connection that this module reads."""

    conn_id: str
    host: str | None
    port: int | None
    login: str | None
    password: str | None


@dataclass(frozen=True, slots=True)
class SshSettings:
    """The settings with which the library opens an SSH connection to a machine. The ``repr`` of this class contains no
    secrets.

    :param private_key: the text of the private key. ``key_file`` is the path of a private key on the local host. The
        library uses the keys and the SSH agent of the local account only if ``private_key``, ``key_file`` and
        ``password`` are all missing and ``look_for_keys`` is true.
    :param host_key: the only host key that the machine may have, such as ``ssh-ed25519 AAAA...``. If ``host_key`` is
        None, the host keys in ``known_hosts`` are accepted.
    :param known_hosts: path of a file with accepted host keys. If ``known_hosts`` is None, the host keys in the files
        ``~/.ssh/known_hosts`` and ``/etc/ssh/ssh_known_hosts`` are accepted.
    :param check_host_key: whether to verify the host key of the machine; with False, any host key is accepted.
    :param proxy_command: a command that runs on the local host. The library connects to the machine over the standard
        input and output of this command instead of a TCP connection. If ``proxy_command`` is None, the library opens a
        TCP connection.
    :param ciphers: the ciphers that may be used; the preferred cipher is the first. If ``ciphers`` is empty, the
        ciphers that asyncssh allows by default may be used.
    :param disabled: the algorithms that must not be used, by the kind of the algorithm: ciphers, kex, keys, macs or
        pubkeys.
    :param connect_seconds: timeout in seconds for opening the SSH connection, including the login.
    :param command_seconds: timeout in seconds of each request to the machine.
    """

    conn_id: str
    host: str
    port: int
    username: str
    password: str | None = field(default=None, repr=False)
    private_key: str | None = field(default=None, repr=False)
    key_file: str | None = None
    passphrase: str | None = field(default=None, repr=False)
    look_for_keys: bool = True
    host_key: str | None = None
    known_hosts: str | None = None
    check_host_key: bool = True
    proxy_command: str | None = field(default=None, repr=False)
    ciphers: tuple[str, ...] = ()
    disabled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    connect_seconds: float = _CONNECT_SECONDS
    command_seconds: float = _COMMAND_SECONDS

    @property
    def name(self) -> str:
        """The machine's name in log lines and errors, such as ``airflow@web-3:22``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.username}@{host}:{self.port}"

    def without_secrets(self, text: object) -> str:
        """Return the text with the secrets of the Airflow connection replaced by asterisks."""
        shown = str(text)
        for secret in (self.password, self.private_key, self.passphrase, self.proxy_command):
            if secret:
                shown = shown.replace(secret, "***")
        return shown


def ssh_settings(
    connection: SshAirflowConnection,
    extra: Any,
    *,
    remote_host: str | None = None,
    connect_timeout: float | None = None,
) -> SshSettings:
    """Return the settings that an Airflow connection of type SSH contains.

    :param extra: the field ``extra`` of the connection, parsed from JSON.
    :param remote_host: a host name or address that replaces the host of the Airflow connection. If None, the
        connection's host is used.
    :param connect_timeout: timeout in seconds for opening the SSH connection, which replaces the ``conn_timeout`` of
        the Airflow connection. If None, ``conn_timeout`` is used.
    :raises ConfigurationError: if a setting is missing or malformed, or if the connection has an unknown setting that
        may affect security.
    """
    conn_id = connection.conn_id
    if not isinstance(extra, Mapping):
        raise ConfigurationError(
            f"the extra of the connection {conn_id!r} must be a JSON object with settings of the ssh provider"
        )
    extra = {str(name): value for name, value in extra.items() if value is not None and value != ""}
    _check_security_settings(conn_id, extra)
    host = remote_host or connection.host
    if not host:
        raise ConfigurationError(f"the connection {conn_id!r} has no host; add one, or give remote_host")
    private_key, key_file = _text(conn_id, extra, "private_key"), _text(conn_id, extra, "key_file")
    if private_key and key_file:
        raise ConfigurationError(f"the connection {conn_id!r} has both private_key and key_file; remove one")
    host_key, known_hosts, check_host_key = _host_key_policy(conn_id, extra)
    return SshSettings(
        conn_id=conn_id,
        host=host,
        port=connection.port or _PORT,
        username=connection.login or _local_user(conn_id),
        # The provider also strips the password.
        password=(connection.password or "").strip() or None,
        private_key=private_key,
        key_file=key_file,
        passphrase=_text(conn_id, extra, "private_key_passphrase") or _text(conn_id, extra, "passphrase"),
        look_for_keys=_flag(conn_id, extra, "look_for_keys", True),
        host_key=host_key,
        known_hosts=known_hosts,
        check_host_key=check_host_key,
        proxy_command=_text(conn_id, extra, "host_proxy_cmd"),
        ciphers=_names(conn_id, "ciphers", extra.get("ciphers", [])),
        disabled=_disabled(conn_id, extra.get("disabled_algorithms", {})),
        connect_seconds=connect_timeout
        or _seconds(conn_id, extra, "conn_timeout")
        # "timeout" is the older name of conn_timeout.
        or _seconds(conn_id, extra, "timeout")
        or _CONNECT_SECONDS,
        command_seconds=_seconds(conn_id, extra, "cmd_timeout") or _COMMAND_SECONDS,
    )


def _check_security_settings(conn_id: str, extra: Mapping[str, Any]) -> None:
    unknown = sorted(
        name for name in extra if name.startswith(_SECURITY_PREFIXES) and name not in _KNOWN_SECURITY_SETTINGS
    )
    if unknown:
        raise ConfigurationError(
            f"the connection {conn_id!r} has unknown security settings: {', '.join(unknown)}; remove them, or use "
            f"{', '.join(sorted(_KNOWN_SECURITY_SETTINGS))}"
        )


def _host_key_policy(conn_id: str, extra: Mapping[str, Any]) -> tuple[str | None, str | None, bool]:
    """Return the accepted host key, the path of the known hosts file, and whether the host key must be verified."""
    if _flag(conn_id, extra, "allow_host_key_change", False):
        raise ConfigurationError(
            f"the connection {conn_id!r} has allow_host_key_change, which would disable the check of the host key; "
            "remove this setting, and give the new host_key. To accept any host key, set no_host_key_check instead"
        )
    older = _flag(conn_id, extra, "ignore_hostkey_verification", False)
    unchecked = _flag(conn_id, extra, "no_host_key_check", older)
    host_key = _text(conn_id, extra, "host_key")
    known_hosts = _text(conn_id, extra, "known_hosts")
    if host_key and unchecked:
        raise ConfigurationError(
            f"the connection {conn_id!r} has both host_key and no_host_key_check; remove one"
        )
    # SSHHookAsync disables the check with known_hosts="none".
    if known_hosts is not None and known_hosts.lower() == "none":
        known_hosts, unchecked = None, not host_key
    return host_key and _host_key(host_key), known_hosts, not unchecked


def _host_key(text: str) -> str:
    """Return a host key that begins with its type, such as ``ssh-rsa AAAA...``. If the text has no type, the key is an
    RSA key, as in the ssh provider.
    """
    parts = text.split()
    return " ".join(parts[:2]) if len(parts) > 1 else f"ssh-rsa {parts[0]}"


def _local_user(conn_id: str) -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigurationError(
            f"the connection {conn_id!r} has no login, and the user of this process has no name that could be used "
            "instead; set login to the name of the remote account"
        ) from None


def _disabled(conn_id: str, value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping) or not set(value) <= set(_ALGORITHMS):
        raise ConfigurationError(
            f"disabled_algorithms of the connection {conn_id!r} must be a JSON object of lists, with the keys "
            f"{', '.join(_ALGORITHMS)}"
        )
    return {
        str(kind): _names(conn_id, f"disabled_algorithms[{kind}]", names) for kind, names in value.items()
    }


def _names(conn_id: str, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise ConfigurationError(f"{name} of the connection {conn_id!r} must be a list of names")
    return tuple(value)


def _flag(conn_id: str, extra: Mapping[str, Any], name: str, default: bool) -> bool:
    value = str(extra.get(name, default)).lower()
    if value not in ("true", "false"):
        raise ConfigurationError(f"{name} of the connection {conn_id!r} must be true or false")
    return value == "true"


def _seconds(conn_id: str, extra: Mapping[str, Any], name: str) -> float | None:
    if name not in extra:
        return None
    try:
        seconds = float(extra[name])
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigurationError(
            f"{name} of the connection {conn_id!r} must be a number of seconds, 0 or more"
        )
    return seconds


def _text(conn_id: str, extra: Mapping[str, Any], name: str) -> str | None:
    value = extra.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"{name} of the connection {conn_id!r} must be a string")
    return value
