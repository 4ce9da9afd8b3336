"""A supervisord's configuration as the triggers of its tasks are given it, and what follows from it.

Airflow keeps a trigger's arguments in the DAG's serialized form, where many can read them. So a configuration that
holds a password, or variables of an environment, is encrypted, and always to the same text: Airflow would take another
one for another version of the DAG.
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

from pydantic import ValidationError

from deferrable_ops.exceptions import ConfigurationError, InputError
from deferrable_ops.supervisord.airflow import (
    SupervisorAirflowConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.supervisord.rendering import IN_DAEMON, IN_PROCESS, render_value
from deferrable_ops.upstreams.machine.machine import MachineAddress
from deferrable_ops.upstreams.supervisord.client import SupervisordAddress

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

Step = Literal[
    "configure-supervisor",
    "start-supervisor",
    "start-programs",
    "restart-programs",
    "stop-programs",
    "stop-supervisor",
    "unconfigure-supervisor",
    "force-kill",
]
STEPS: Final[tuple[Step, ...]] = get_args(Step)

DEFAULT_CONNECTION: Final = "ssh_default"

_KINDS: Final[dict[str, type[SupervisorAirflowConfiguration]]] = {
    "local": SupervisorAirflowConfiguration,
    "ssh": SupervisorSSHAirflowConfiguration,
}
_SEALED: Final = "sealed:"
_PURPOSE: Final = b"deferrable-ops: configuration of supervisord"
_SHORTEST_HIDDEN: Final = 4  # characters; hiding shorter values would make a message unreadable
_EXPRESSIONS: Final = (frozenset[str](), IN_DAEMON | {"host_node_name"}, IN_PROCESS)
# What supervisord says of a value that it cannot read, after that value, or before it.
_QUOTED: Final = re.compile(
    r"(?m)^(.*?it wrote: ['\"]|).* (?=for \\*'[\w.:-]+\\*' (?:contains names \(|is badly formatted))"
)
_QUOTED_LAST: Final = re.compile(r"(?<= in value ').*")
_OUTPUT: Final = re.compile(r"it wrote: ['\"]")
_STARTING: Final = 10.0  # seconds: what supervisord needs on a slow machine
_STOPS: Final = frozenset({"restart-programs", "start-programs", "stop-programs", "stop-supervisor"})
_STARTS: Final = frozenset({"restart-programs", "start-programs"})


def serialize_configuration(cfg: SupervisorAirflowConfiguration) -> str:
    """Return a configuration as text that :func:`load_configuration` reads: the same text for the same configuration.

    :raises ConfigurationError: it holds a password, and there is no key to encrypt it with.
    :raises InputError: it cannot be rendered, or nobody could log in with what it holds.
    """
    supervisord_address(cfg, cfg.socket_path)
    cfg.to_cfg()
    kind = next(kind for kind, of_kind in reversed(_KINDS.items()) if isinstance(cfg, of_kind))
    text = json.dumps({"kind": kind, "configuration": cfg.with_secrets()}, sort_keys=True)
    if not any(_hidden(cfg)):
        return text
    ciphers = _ciphers()
    if ciphers:
        return _SEALED + base64.urlsafe_b64encode(ciphers[0].encrypt(text.encode(), None)).decode()
    if cfg.has_secrets or cfg.airflow.password is not None:
        raise ConfigurationError(
            "[core] fernet_key is empty: set it, to the same on all machines; the passwords of a supervisord's "
            "configuration are kept encrypted with it"
        )
    return text


@lru_cache(maxsize=256)  # hundreds of triggers are given the same
def load_configuration(text: str) -> SupervisorAirflowConfiguration:
    """Return the configuration that was sealed; one for SSH is a SupervisorSSHAirflowConfiguration.

    :raises ConfigurationError: it was sealed with another key.
    :raises InputError: the text is no configuration.
    """
    plain = _unsealed(text) if text.startswith(_SEALED) else text
    try:
        told = json.loads(plain)
        return _KINDS[told["kind"]].model_validate(told["configuration"])
    except ValidationError as error:
        raise InputError(f"configuration: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            "configuration is not what serialize_configuration() returns; use an operator, or call it"
        ) from None


def is_remote(cfg: SupervisorAirflowConfiguration) -> bool:
    """Return whether its supervisord runs on a machine that is reached by SSH."""
    return isinstance(cfg, SupervisorSSHAirflowConfiguration)


def machine_address(cfg: SupervisorAirflowConfiguration) -> MachineAddress:
    """Return the machine on which its supervisord runs."""
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


def supervisord_address(cfg: SupervisorAirflowConfiguration, socket: Path) -> SupervisordAddress:
    """Return how its supervisord answers.

    :param socket: the path on this host that reaches its socket.
    :raises InputError: the socket's password is a hash, with which nobody can log in.
    """
    server = cfg.unix_http_server
    if server is None or server.password is None:
        return SupervisordAddress(socket=socket)
    return SupervisordAddress(
        socket=socket, username=server.username, password=server.password.get_secret_value()
    )


def daemon_name(cfg: SupervisorAirflowConfiguration) -> str:
    """Return what the inbox calls its supervisord: ``/the/working_dir``, or ``connection:/the/working_dir``."""
    where = machine_address(cfg)
    if where.ssh_conn_id is None:
        return str(cfg.working_dir)
    host = f"@{where.remote_host}" if where.remote_host else ""
    return f"{where.ssh_conn_id}{host}:{cfg.working_dir}"


def stop_seconds(cfg: SupervisorAirflowConfiguration) -> float:
    """Return how long its programs may take to stop, all of them at once."""
    programs = (*cfg.programs.values(), *cfg.eventlistener.values())
    return float(max(program.stopwaitsecs for program in programs))


def start_seconds(cfg: SupervisorAirflowConfiguration) -> float:
    """Return how long supervisord may take until each program has started, or failed to after its last try."""
    # supervisord waits a second longer before each further try.
    return max(
        float(program.startsecs * (program.startretries + 1) + sum(range(program.startretries + 1)))
        for program in cfg.programs.values()
    )


def step_timeout(cfg: SupervisorAirflowConfiguration, step: Step) -> float:
    """Return the seconds that a step may take: ``command_timeout``, and what its programs need to stop and to start."""
    seconds = float(cfg.airflow.command_timeout) + _STARTING
    if step in _STOPS:
        seconds += stop_seconds(cfg)
    if step in _STARTS:
        seconds += start_seconds(cfg)
    if step in ("start-supervisor", "stop-supervisor"):
        # A daemon that was killed, or does not answer, leaves programs: they are told to end, and killed after that.
        seconds += 2 * stop_seconds(cfg)
    return seconds


def mask_secrets(text: str, cfg: SupervisorAirflowConfiguration) -> str:
    """Return a text with the values that the configuration hides taken out of it.

    They are found as they are, as supervisord's file holds them, as Python shows either, and where a text that was cut
    begins in the middle of one. What supervisord quotes of its file when it cannot read that is left out.
    """
    text = _QUOTED_LAST.sub("***", _QUOTED.sub(r"\1", text))
    values = [value for value in _hidden(cfg) if len(value) >= _SHORTEST_HIDDEN]
    forms = sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)
    for form in forms:
        text = text.replace(form, "***")
    quoted = _OUTPUT.search(text)
    for begin in (0, *([quoted.end()] if quoted else [])):
        text = text[:begin] + _without_rest(text[begin:], forms)
    return text


def _forms(value: str) -> set[str]:
    """Return what a value may look like in a message."""
    forms = {value, value.replace("%", "%%"), value.replace("%", "%%%%")}
    for expressions in _EXPRESSIONS:
        for expanded in (1, 2):
            with suppress(InputError):  # it is in no file
                # In quotes, as there: spaces at its ends need nothing.
                forms.add(render_value("", f'"{value}"', expressions, expanded)[1:-1])
    for _ in range(2):  # a message that is shown by Python may itself be quoted
        forms |= {shown for form in forms for shown in _shown(form)}
    return forms


def _shown(text: str) -> Iterator[str]:
    """Yield how Python shows a text within a longer one, which may hold quotes of both kinds."""
    quotes = "'\""
    for show in (repr, ascii):
        yield show(text)[1:-1]
        yield show(quotes + text)[len(repr(quotes)) - 1 : -1]


def _without_rest(text: str, forms: Sequence[str]) -> str:
    """Return a text that may begin in the middle of a value without the rest of that."""
    rest, first = 0, text[:_SHORTEST_HIDDEN]
    for form in forms if len(first) == _SHORTEST_HIDDEN else ():
        start = form.find(first, 1)
        while start > 0 and not text.startswith(form[start:]):
            start = form.find(first, start + 1)
        rest = max(rest, len(form) - start if start > 0 else 0)
    return f"***{text[rest:]}" if rest else text


def _hidden(cfg: SupervisorAirflowConfiguration) -> Iterator[str]:
    """Yield the passwords, and the values of variables, which may be passwords."""
    for server in (cfg.unix_http_server, cfg.inet_http_server, cfg.supervisorctl, cfg.airflow):
        if server is not None and server.password is not None:
            yield server.password.get_secret_value()
    programs = (*cfg.programs.values(), *cfg.eventlistener.values())
    for environment in (cfg.supervisord.environment, *(program.environment for program in programs)):
        yield from environment.values()
    for interface in cfg.rpcinterface.values():
        yield from map(str, interface.kwargs.values())
    if isinstance(cfg, SupervisorSSHAirflowConfiguration):
        yield from cfg.ssh_operator_args.environment.values()


def _unsealed(text: str) -> str:
    from cryptography.exceptions import InvalidTag

    try:
        sealed = base64.urlsafe_b64decode(text.removeprefix(_SEALED))
    except (binascii.Error, ValueError):
        raise InputError("configuration is sealed, and cut or changed; parse the DAG again") from None
    for cipher in _ciphers():
        try:
            return cipher.decrypt(sealed, None).decode()
        except InvalidTag:
            continue
    raise ConfigurationError(
        "the configuration of a supervisord was sealed with another [core] fernet_key: set the same key on all "
        "machines, or set that one beside yours, separated by a comma, until the DAG is parsed again"
    )


def _ciphers() -> list[AESSIV]:
    """Return what encrypts, first with the newest of Airflow's keys; nothing where Airflow has none."""
    from airflow.sdk.configuration import conf

    keys = conf.get("core", "fernet_key", fallback="") or ""
    return [_cipher(key.strip()) for key in keys.split(",") if key.strip()]


@lru_cache(maxsize=8)
def _cipher(key: str) -> AESSIV:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    # Deterministic, and safe to be so: SIV tells of two texts only whether they are the same.
    return AESSIV(HKDF(SHA256(), length=64, salt=None, info=_PURPOSE).derive(key.encode()))
