"""Types of the values in supervisord's configuration file. These types accept the same values as supervisor 4.3
(``datatypes.py``).
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, SecretStr, SerializationInfo

from deferrable_ops.exceptions import InputError

REVEAL: Final = "reveal secrets"
"""Key in pydantic's serialization context. If this key is set, passwords are serialized in plain text."""

_HIDDEN: Final = str(SecretStr("hidden"))
_NAME: Final = re.compile(r"\w[\w.+@-]*")
_VALUE: Final = r"""(?:"[^"]*"|'[^']*'|[^\s,"']*)"""
_PAIR: Final = rf"[A-Za-z_][\w.-]*\s*=\s*{_VALUE}"
_PAIR_GROUPS: Final = rf"([A-Za-z_][\w.-]*)\s*=\s*({_VALUE})"


def plain(value: Any) -> Any:
    """Convert mappings and sequences, such as OmegaConf's ``DictConfig``, to plain dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    return value


def is_loopback(host: str) -> bool:
    """Return whether only processes on the same machine can connect to supervisord if supervisord listens on
    this host.
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(port: str) -> str:
    """Return the host part of an address ``host:port``; ``*`` means all network interfaces."""
    return port.rpartition(":")[0]


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _list(separator: str | None) -> Any:
    def split(value: Any) -> Any:
        if isinstance(value, str):
            return [item.strip() for item in value.split(separator) if item.strip()]
        return value

    return split


def _numbers(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    return _list(",")(value)


def _octal(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch("[0-7]{1,4}", value):
        raise InputError(
            "must be an octal number in quotes, such as '022'; without quotes, YAML may read another number"
        )
    return value


def _signal(value: Any) -> Any:
    name = str(value).upper().removeprefix("SIG")
    try:
        number = (
            signal.Signals(int(name)) if name.isascii() and name.isdigit() else signal.Signals[f"SIG{name}"]
        )
    except (KeyError, ValueError):
        raise InputError("is not a signal; give a name, such as TERM, or a number") from None
    return number.name.removeprefix("SIG")


def _host_and_port(value: Any) -> Any:
    host, _, number = str(value).strip().rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", number) or not 0 < int(number) < 65536:
        raise InputError("has no port between 1 and 65535; give host:port, *:port or only the port")
    if re.search(r"[:\s/]", host):
        raise InputError(
            "has a host on which supervisord cannot listen; give an IPv4 address, a host name or *"
        )
    return f"{host.lower() or '*'}:{int(number)}"


def _variables(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _text(item) for name, item in value.items()}
    if isinstance(value, str):
        pairs = re.fullmatch(rf"\s*(?:{_PAIR}\s*(?:,\s*{_PAIR}\s*)*,?\s*)?", value)
        if pairs is None:
            raise InputError('is not a list of variables; give a mapping, or a text such as A="1",B="2"')
        return {name: text.strip("'\"") for name, text in re.findall(_PAIR_GROUPS, value)}
    return value


def _secret(value: Any) -> Any:
    given = value.get_secret_value() if isinstance(value, SecretStr) else value
    if given == _HIDDEN:
        raise InputError(
            "is masked, because the configuration was serialized without secrets; serialize it with with_secrets()"
        )
    if given == "":
        raise InputError("is empty; give a value, or remove the field")
    return _text(value)


def _written_secret(value: SecretStr | None, info: SerializationInfo) -> Any:
    if value is not None and isinstance(info.context, Mapping) and info.context.get(REVEAL):
        return value.get_secret_value()
    return str(value) if value is not None and info.mode == "json" else value


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(
            f"{value!r} is not allowed as a name; use letters, digits and '_.+@-', starting with a letter, a "
            "digit or '_'"
        )
    return value


def _user(value: Any) -> Any:
    value = _text(value)
    if isinstance(value, str) and re.search(r"\s", value):
        raise InputError("contains a space; give the name or the number of a user")
    return value


def _path(value: Any) -> Any:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if value == "":
        raise InputError("is empty; give a path, or remove the field")
    return value


Name = Annotated[str, BeforeValidator(_name)]
"""Name of a program, group or plugin. Section headers, paths and full process names contain such a name."""
FilePath = Annotated[Path, BeforeValidator(_path)]
Secret = Annotated[SecretStr, BeforeValidator(_secret), PlainSerializer(_written_secret)]
User = Annotated[str, BeforeValidator(_user), Field(min_length=1)]
ByteSize = Annotated[str, BeforeValidator(_text), Field(pattern=r"^(?i:[0-9]+(KB|MB|GB)?)$")]
Octal = Annotated[str, BeforeValidator(_octal)]
Signal = Annotated[str, BeforeValidator(_signal)]
HostPort = Annotated[str, BeforeValidator(_host_and_port)]
ExitCodes = Annotated[list[Annotated[int, Field(ge=0, le=255)]], BeforeValidator(_numbers)]
Words = Annotated[list[str], BeforeValidator(_list(None))]
Names = Annotated[list[Name], BeforeValidator(_list(",")), Field(min_length=1)]
Events = Annotated[
    list[Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]*$")]],
    BeforeValidator(_list(",")),
    Field(min_length=1),
]
Variables = Annotated[dict[str, str], BeforeValidator(_variables)]
LogLevel = Literal["critical", "error", "warn", "info", "debug", "trace", "blather"]
