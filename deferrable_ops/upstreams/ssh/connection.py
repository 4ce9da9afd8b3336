"""Airflow's SSH connection, as the ssh provider documents it. The provider need not be installed."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from deferrable_ops.exceptions import ConfigurationError

_PORT: Final = 22
_CONNECT_SECONDS, _COMMAND_SECONDS = 10.0, 30.0
# Who we are, whom we trust and how we get there is never passed over: a setting that is not known here is refused.
_GUARDED: Final = (
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
_KNOWN: Final = frozenset(
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
# paramiko's names for kinds of algorithms, in which the provider takes those that are not to be used.
_ALGORITHMS: Final = ("ciphers", "kex", "keys", "macs", "pubkeys")


class SshAirflowConnection(Protocol):
    """What is read of an Airflow connection."""

    conn_id: str
    host: str | None
    port: int | None
    login: str | None
    password: str | None


@dataclass(frozen=True, slots=True)
class SshSettings:
    """How a machine is reached by SSH. Its ``repr`` shows no secret.

    :param private_key: the key itself; ``key_file`` is a path of this host. Of both and ``password``, None: the
        account's own keys and its agent are tried, if ``look_for_keys``.
    :param host_key: the only one that the machine may have, as ``ssh-ed25519 AAAA...``; None: ``known_hosts`` tells.
    :param known_hosts: a file; None: ``~/.ssh/known_hosts`` and ``/etc/ssh/ssh_known_hosts``.
    :param check_host_key: False: whoever answers is believed to be the machine.
    :param proxy_command: a command of this host whose input and output are the way to the machine.
    :param ciphers: those that may be used, the best first; (): asyncssh's own.
    :param disabled: algorithms that are not used, by kind: ciphers, kex, keys, macs, pubkeys.
    :param connect_seconds: to connect and log in.
    :param command_seconds: for each thing that is asked for.
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
        """The machine, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.username}@{host}:{self.port}"

    def without_secrets(self, text: object) -> str:
        """Return a text in which the secrets are replaced by asterisks."""
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
    """Return the settings of an Airflow connection of the type SSH.

    :param extra: the connection's, as JSON.
    :param remote_host: instead of the connection's.
    :param connect_timeout: in seconds, instead of the connection's.
    :raises ConfigurationError: a setting is missing, malformed, or one that guards the connection and is not known.
    """
    conn_id = connection.conn_id
    if not isinstance(extra, Mapping):
        raise ConfigurationError(
            f"the extra of the connection {conn_id!r} is not a JSON object of the ssh provider's settings"
        )
    extra = {str(name): value for name, value in extra.items() if value is not None and value != ""}
    _check_guards(conn_id, extra)
    host = remote_host or connection.host
    if not host:
        raise ConfigurationError(
            f"the connection {conn_id!r} has no host; write one into it, or give remote_host"
        )
    private_key, key_file = _text(conn_id, extra, "private_key"), _text(conn_id, extra, "key_file")
    if private_key and key_file:
        raise ConfigurationError(f"the connection {conn_id!r} has both private_key and key_file; give one")
    host_key, known_hosts, check_host_key = _whom_to_trust(conn_id, extra)
    return SshSettings(
        conn_id=conn_id,
        host=host,
        port=connection.port or _PORT,
        username=connection.login or _this_user(conn_id),
        password=(connection.password or "").strip() or None,  # as the provider does
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
        or _seconds(conn_id, extra, "timeout")  # its older name
        or _CONNECT_SECONDS,
        command_seconds=_seconds(conn_id, extra, "cmd_timeout") or _COMMAND_SECONDS,
    )


def _check_guards(conn_id: str, extra: Mapping[str, Any]) -> None:
    unknown = sorted(name for name in extra if name.startswith(_GUARDED) and name not in _KNOWN)
    if unknown:
        raise ConfigurationError(
            f"the connection {conn_id!r} has settings that guard it and are not known here: {', '.join(unknown)}; "
            f"take them out, or say it with {', '.join(sorted(_KNOWN))}"
        )


def _whom_to_trust(conn_id: str, extra: Mapping[str, Any]) -> tuple[str | None, str | None, bool]:
    """Return the host key, the file of known hosts, and whether they are looked at."""
    if _flag(conn_id, extra, "allow_host_key_change", False):
        raise ConfigurationError(
            f"the connection {conn_id!r} has allow_host_key_change, with which nothing is checked; give the new "
            "host_key, or say no_host_key_check"
        )
    older = _flag(conn_id, extra, "ignore_hostkey_verification", False)
    unchecked = _flag(conn_id, extra, "no_host_key_check", older)
    host_key = _text(conn_id, extra, "host_key")
    known_hosts = _text(conn_id, extra, "known_hosts")
    if host_key and unchecked:
        raise ConfigurationError(
            f"the connection {conn_id!r} has both host_key and no_host_key_check; give one"
        )
    if known_hosts is not None and known_hosts.lower() == "none":  # SSHHookAsync's word for it
        known_hosts, unchecked = None, not host_key
    return host_key and _host_key(host_key), known_hosts, not unchecked


def _host_key(text: str) -> str:
    """Return a host key with its kind; alone, it is one of RSA, as for the provider."""
    parts = text.split()
    return " ".join(parts[:2]) if len(parts) > 1 else f"ssh-rsa {parts[0]}"


def _this_user(conn_id: str) -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigurationError(
            f"the connection {conn_id!r} has no login, and this process runs as a user without a name; write the "
            "remote account's name into it"
        ) from None


def _disabled(conn_id: str, value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping) or not set(value) <= set(_ALGORITHMS):
        raise ConfigurationError(
            f"the connection {conn_id!r} has disabled_algorithms that are no JSON object of lists under "
            f"{', '.join(_ALGORITHMS)}"
        )
    return {
        str(kind): _names(conn_id, f"disabled_algorithms[{kind}]", names) for kind, names in value.items()
    }


def _names(conn_id: str, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise ConfigurationError(f"the connection {conn_id!r} has {name} that is no list of names")
    return tuple(value)


def _flag(conn_id: str, extra: Mapping[str, Any], name: str, default: bool) -> bool:
    said = str(extra.get(name, default)).lower()
    if said not in ("true", "false"):
        raise ConfigurationError(f"the connection {conn_id!r} has a {name} that is neither true nor false")
    return said == "true"


def _seconds(conn_id: str, extra: Mapping[str, Any], name: str) -> float | None:
    if name not in extra:
        return None
    try:
        seconds = float(extra[name])
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigurationError(f"the connection {conn_id!r} has a {name} that is no number of seconds")
    return seconds


def _text(conn_id: str, extra: Mapping[str, Any], name: str) -> str | None:
    value = extra.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"the connection {conn_id!r} has a {name} that is no string")
    return value
