"""Converts the configuration of a supervisord into a string, which is an argument of triggers. This module also
computes values from the configuration.

Airflow stores the arguments of a trigger in the serialized DAG, which many users can read. Therefore a configuration
with passwords or environment variables is encrypted. The encryption always gives the same encrypted text for the same
configuration. Otherwise, each parse would give the trigger another argument, and Airflow would create a new version of
the DAG.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args
from urllib.parse import urlsplit

from pydantic import ValidationError

from deferrable_ops.exceptions import ConfigurationError, DeploymentError, InputError
from deferrable_ops.supervisord.airflow import (
    SupervisorAirflowConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.supervisord.program_sections import start_order
from deferrable_ops.supervisord.rendering import IN_DAEMON, IN_PROCESS, render_value
from deferrable_ops.supervisord.values import REVEAL
from deferrable_ops.triggers.supervisor.program_checks import validate_checks
from deferrable_ops.upstreams.machine.machine import MachineAddress
from deferrable_ops.upstreams.supervisord.client import SupervisordAddress

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

StepName = Literal[
    "configure-supervisor",
    "start-supervisor",
    "start-programs",
    "restart-programs",
    "stop-programs",
    "stop-supervisor",
    "unconfigure-supervisor",
    "force-kill",
]
STEPS: Final[tuple[StepName, ...]] = get_args(StepName)

START_STEPS: Final[tuple[StepName, ...]] = ("configure-supervisor", "start-supervisor", "start-programs")
TEARDOWN_STEPS: Final[tuple[StepName, ...]] = ("stop-programs", "stop-supervisor", "unconfigure-supervisor")

DEFAULT_CONNECTION: Final = "ssh_default"

_KINDS: Final[dict[str, type[SupervisorAirflowConfiguration]]] = {
    "local": SupervisorAirflowConfiguration,
    "ssh": SupervisorSSHAirflowConfiguration,
}
# The text of an encrypted configuration begins with this prefix.
_ENCRYPTED: Final = "sealed:"
_PURPOSE: Final = b"deferrable-ops: configuration of supervisord"

# Shorter values are not masked: masking them would make messages unreadable.
_SHORTEST_MASKED: Final = 4
_EXPRESSIONS: Final = (frozenset[str](), IN_DAEMON | {"host_node_name"}, IN_PROCESS)

# If supervisord cannot parse a value, its message quotes this value. _QUOTED matches a value at the start of the
# message, and _QUOTED_LAST a value at its end. Errors of Machine.run write "it wrote: " before the output of a command.
_QUOTED: Final = re.compile(
    r"(?m)^(.*?it wrote: ['\"]|).* (?=for \\*'[\w.:-]+\\*' (?:contains names \(|is badly formatted))"
)
_QUOTED_LAST: Final = re.compile(r"(?<= in value ').*")
_OUTPUT: Final = re.compile(r"it wrote: ['\"]")

# The time in seconds that supervisord needs to start on a slow machine.
_DAEMON_START_SECONDS: Final = 10.0

_WAIT_FOR_STOP: Final = frozenset({"restart-programs", "start-programs", "stop-programs", "stop-supervisor"})
_WAIT_FOR_START: Final = frozenset({"restart-programs", "start-programs"})


def serialize_configuration(cfg: SupervisorAirflowConfiguration) -> str:
    """Convert a configuration to a string, which :func:`load_configuration` converts back. Equal configurations give
    equal strings.

    :raises ConfigurationError: if the configuration has a password, but Airflow has no ``fernet_key``, with which the
        password could be encrypted.
    :raises InputError: if supervisord's configuration file cannot contain one of the values, if the password is a hash,
        or if a check of a program has an invalid argument.
    """
    supervisord_address(cfg, cfg.socket_path)
    validate_checks(cfg)
    cfg.to_cfg()
    kind = next(kind for kind, of_kind in reversed(_KINDS.items()) if isinstance(cfg, of_kind))
    text = _shortest(kind, cfg)
    if not any(_secrets_of(cfg)) and not any(notifier.kwargs for notifier in cfg.on_program_event):
        return text
    ciphers = _ciphers()
    if ciphers:
        return _ENCRYPTED + base64.urlsafe_b64encode(ciphers[0].encrypt(text.encode(), None)).decode()
    if cfg.has_secrets or cfg.airflow.password is not None:
        raise ConfigurationError(
            "[core] fernet_key is empty, but it is needed to encrypt the passwords of a supervisord's configuration; "
            "set the same fernet_key on all machines"
        )
    return text


def _shortest(kind: str, cfg: SupervisorAirflowConfiguration) -> str:
    """Return a configuration as text. If all other fields can be computed from the fields that the user set, the text
    contains only the fields that the user set. Otherwise, the text contains all fields.

    The text must be short, because the serialized DAG contains it once for each step, and each trigger has a copy of
    the serialized DAG. The default values depend on the fields that the user set and on the working directory. Because
    the working directory depends on the host and its user, the text always contains the working directory.
    """
    whole = cfg.with_secrets()
    given = cfg.model_dump(mode="json", exclude_unset=True, exclude_none=True, context={REVEAL: True})
    given["working_dir"] = whole["working_dir"]
    try:
        same = _KINDS[kind].model_validate(given).with_secrets() == whole
    except ValidationError:
        # A program of a user's subclass may have defaults that the library does not know.
        same = False
    chosen = {"kind": kind, "configuration": given if same else whole}
    return json.dumps(chosen, sort_keys=True, separators=(",", ":"))


# Hundreds of triggers may share a configuration.
@lru_cache(maxsize=256)
def load_configuration(text: str) -> SupervisorAirflowConfiguration:
    """Return the configuration that :func:`serialize_configuration` has converted into a string.

    :raises DeploymentError: if the configuration was encrypted with another ``fernet_key``.
    :raises InputError: if the text is not the result of :func:`serialize_configuration`.
    """
    plain = _decrypt(text) if text.startswith(_ENCRYPTED) else text
    try:
        data = json.loads(plain)
        return _KINDS[data["kind"]].model_validate(data["configuration"])
    except ValidationError as error:
        raise InputError(f"the supervisord's configuration is not valid: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            "configuration is not a result of serialize_configuration(); use an operator, or give what "
            "serialize_configuration() returns"
        ) from None


def is_remote(cfg: SupervisorAirflowConfiguration) -> bool:
    """Return whether the supervisord runs on another machine, which the library reaches over SSH."""
    return isinstance(cfg, SupervisorSSHAirflowConfiguration)


def machine_address(cfg: SupervisorAirflowConfiguration) -> MachineAddress:
    """Return the address of the machine on which the supervisord runs."""
    if not isinstance(cfg, SupervisorSSHAirflowConfiguration):
        return MachineAddress()
    ssh = cfg.ssh_operator_args
    return MachineAddress(
        ssh_conn_id=ssh.ssh_conn_id or DEFAULT_CONNECTION,
        remote_host=ssh.remote_host,
        connect_timeout=ssh.conn_timeout,
        command_timeout=ssh.cmd_timeout,
        command_prefix=cfg.command_prefix,
        environment=tuple(sorted(ssh.environment.items())),
    )


def outage_source(cfg: SupervisorAirflowConfiguration) -> str:
    """Return the name of the supervisord's machine in reports of outages."""
    address = machine_address(cfg)
    if address.ssh_conn_id is None:
        return f"supervisord in {cfg.working_dir}"
    return f"the machine {address.remote_host or address.ssh_conn_id}"


def supervisord_address(cfg: SupervisorAirflowConfiguration, socket: Path) -> SupervisordAddress:
    """Return the socket path, user name and password with which a client connects to the supervisord.

    :param socket: path of a Unix socket on this host. If the supervisord runs on another machine, SSH forwards
        connections from this socket to supervisord's socket.
    :raises InputError: if the password is a hash, because a client needs the password itself to log in.
    """
    server = cfg.unix_http_server
    if server is None or server.password is None:
        return SupervisordAddress(socket=socket)
    return SupervisordAddress(
        socket=socket, username=server.username, password=server.password.get_secret_value()
    )


def daemon_name(cfg: SupervisorAirflowConfiguration) -> str:
    """Return the name under which the inbox stores a supervisord, such as ``/a/working_dir`` or
    ``connection:/a/working_dir``.
    """
    address = machine_address(cfg)
    if address.ssh_conn_id is None:
        return str(cfg.working_dir)
    host = f"@{address.remote_host}" if address.remote_host else ""
    return f"{address.ssh_conn_id}{host}:{cfg.working_dir}"


def stop_seconds(cfg: SupervisorAirflowConfiguration) -> float:
    """Return the longest time in seconds that the programs need to stop, if all programs stop at the same time."""
    programs = (*cfg.programs.values(), *cfg.eventlistener.values())
    return float(max(program.stopwaitsecs for program in programs))


def start_seconds(cfg: SupervisorAirflowConfiguration) -> float:
    """Return the longest time in seconds until each program has started and is ready, or its last start attempt has
    failed. A program starts when the programs in its ``after`` are ready.
    """
    ends: dict[str, float] = {}
    for name in start_order(cfg.programs):
        program = cfg.programs[name]
        # Before each further attempt, supervisord waits one second longer than before the previous attempt.
        start = program.startsecs * (program.startretries + 1) + sum(range(program.startretries + 1))
        ready = program.ready_timeout.total_seconds() if program.ready else 0.0
        ends[name] = max((ends[other] for other in program.after), default=0.0) + start + ready
    return max(ends.values())


def step_timeout(cfg: SupervisorAirflowConfiguration, step: StepName) -> float:
    """Return the timeout of a step in seconds: ``command_timeout`` plus the time that the step needs to stop and start
    programs.
    """
    seconds = float(cfg.airflow.command_timeout) + _DAEMON_START_SECONDS
    if step in _WAIT_FOR_STOP:
        seconds += stop_seconds(cfg)
    if step in _WAIT_FOR_START:
        seconds += start_seconds(cfg)
    if step in ("start-supervisor", "stop-supervisor"):
        # If supervisord is dead or does not answer, its processes may keep running. They get SIGTERM, later SIGKILL.
        seconds += 2 * stop_seconds(cfg)
    return seconds


def mask_secrets(text: str, cfg: SupervisorAirflowConfiguration) -> str:
    """Return the text with all secret values of the configuration replaced by ``***``.

    A secret value is replaced in four forms: unchanged; escaped as in supervisord's configuration file; as Python's
    repr of one of the first two forms; and without its beginning, if the text was truncated there. If the text is a
    parse error of supervisord, the parts that quote the configuration file are also removed.
    """
    text = _QUOTED_LAST.sub("***", _QUOTED.sub(r"\1", text))
    values = [value for value in _secrets_of(cfg) if len(value) >= _SHORTEST_MASKED]
    forms = sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)
    for form in forms:
        text = text.replace(form, "***")
    quoted = _OUTPUT.search(text)
    for start in (0, *([quoted.end()] if quoted else [])):
        text = text[:start] + _mask_truncated_start(text[start:], forms)
    return text


def _forms(value: str) -> set[str]:
    """Return the forms of a secret value that a message may contain, for example with escaped characters."""
    forms = {value, value.replace("%", "%%"), value.replace("%", "%%%%")}
    for expressions in _EXPRESSIONS:
        for expanded in (1, 2):
            # A value that cannot be rendered is not in supervisord's file.
            with suppress(InputError):
                # Values of environment variables are written in quotes, so spaces at their ends need no escape.
                forms.add(render_value("", f'"{value}"', expressions, expanded)[1:-1])
    # Run this twice, because the repr of a message may be quoted in another repr.
    for _ in range(2):
        forms |= {shown for form in forms for shown in _reprs(form)}
    return forms


def _reprs(text: str) -> Iterator[str]:
    """Yield the forms in which a text can appear inside the Python repr of a longer text.

    The form depends on whether the longer text contains single quotes and double quotes.
    """
    quotes = "'\""
    for show in (repr, ascii):
        yield show(text)[1:-1]
        yield show(quotes + text)[len(repr(quotes)) - 1 : -1]


def _mask_truncated_start(text: str, forms: Sequence[str]) -> str:
    """If a text begins in the middle of a secret value, replace the rest of this secret value by ``***``."""
    rest, first = 0, text[:_SHORTEST_MASKED]
    for form in forms if len(first) == _SHORTEST_MASKED else ():
        start = form.find(first, 1)
        while start > 0 and not text.startswith(form[start:]):
            start = form.find(first, start + 1)
        rest = max(rest, len(form) - start if start > 0 else 0)
    return f"***{text[rest:]}" if rest else text


def _secrets_of(cfg: SupervisorAirflowConfiguration) -> Iterator[str]:
    """Yield all passwords, and all values of environment variables, plugin options and headers of checks, which may
    contain passwords.
    """
    for server in (cfg.unix_http_server, cfg.inet_http_server, cfg.supervisorctl, cfg.airflow):
        if server is not None and server.password is not None:
            yield server.password.get_secret_value()
    programs = (*cfg.programs.values(), *cfg.eventlistener.values())
    for environment in (cfg.supervisord.environment, *(program.environment for program in programs)):
        yield from environment.values()
    for check in (check for program in cfg.programs.values() for check in (program.ready, program.healthy)):
        http = (check or {}).get("http", {})
        yield from (http.get("headers") or {}).values()
        address = urlsplit(str(http.get("url", "")))
        yield from (text for text in (address.username, address.password, address.query) if text)
    for interface in cfg.rpcinterface.values():
        yield from map(str, interface.kwargs.values())
    if isinstance(cfg, SupervisorSSHAirflowConfiguration):
        yield from cfg.ssh_operator_args.environment.values()


def _decrypt(text: str) -> str:
    from cryptography.exceptions import InvalidTag

    try:
        encrypted = base64.urlsafe_b64decode(text.removeprefix(_ENCRYPTED))
    except (binascii.Error, ValueError):
        raise InputError(
            "the encrypted configuration was truncated or modified; parse the DAG again"
        ) from None
    for cipher in _ciphers():
        try:
            return cipher.decrypt(encrypted, None).decode()
        except InvalidTag:
            continue
    raise DeploymentError(
        "the configuration of a supervisord was encrypted with another [core] fernet_key; set the same key on all "
        "machines, or append the old key after a comma until the DAG has been parsed again"
    )


def _ciphers() -> list[AESSIV]:
    """Return a cipher for each ``fernet_key`` of Airflow. The first cipher uses the newest key."""
    from airflow.sdk.configuration import conf

    keys = conf.get("core", "fernet_key", fallback="") or ""
    return [_cipher(key.strip()) for key in keys.split(",") if key.strip()]


@lru_cache(maxsize=8)
def _cipher(key: str) -> AESSIV:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    # AES-SIV is deterministic: a reader can see whether two encrypted texts are equal, but cannot see anything else.
    return AESSIV(HKDF(SHA256(), length=64, salt=None, info=_PURPOSE).derive(key.encode()))
