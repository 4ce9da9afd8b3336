"""Opens an SSH connection with asyncssh, and converts the errors of asyncssh into errors of this library."""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.error_table import ErrorKind, class_names, kind_of_code
from deferrable_ops.exceptions import ConfigurationError, LoginRefused, MachineError, MachineUnavailable
from deferrable_ops.upstreams.ssh.connection import SshSettings

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection

log = logging.getLogger(__name__)

KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")

_KEEPALIVES: Final = 3


def import_asyncssh() -> None:
    """Import asyncssh. Call this function in a thread, because the first import takes long and blocks.

    :raises ConfigurationError: if deferrable-ops was installed without the extra ``ssh``.
    """
    try:
        import_module("asyncssh")
    except ImportError as missing:
        raise ConfigurationError(
            f'SSH requires a package that is not installed ({missing}); run pip install "airflow-deferrable-ops[ssh]"'
        ) from missing
    # With the level INFO, asyncssh would log four lines per operation.
    logger = logging.getLogger("asyncssh")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)


class ConnectionDropped(MachineUnavailable):
    """Raised if the SSH server closed the connection before the login was complete.

    sshd closes connections in this way if too many clients connect at the same time.
    """


async def log_in(settings: SshSettings, *, keepalive_interval: float) -> SSHClientConnection:
    """Open an SSH connection to a machine, and log in.

    :param keepalive_interval: number of seconds between two SSH keepalive messages. After three keepalive messages
        without a response, asyncssh closes the connection.
    :raises MachineUnavailable: if the machine does not respond at the moment.
    :raises ConnectionDropped: if the SSH server closed the connection before the login was complete.
    :raises LoginRefused: if the host key of the machine is not accepted, or if the machine rejected the login.
    :raises ConfigurationError: if a setting of the Airflow connection is invalid.
    """
    await asyncio.to_thread(import_asyncssh)
    import asyncssh

    options = await asyncio.to_thread(_options, settings, keepalive_interval)
    if not settings.check_host_key:
        log.warning(
            "The host key of %s is not verified, because its connection has no_host_key_check, "
            "ignore_hostkey_verification or known_hosts=none. To verify the key, remove this setting, and set host_key",
            settings.name,
        )
    try:
        async with asyncio.timeout(settings.connect_seconds):
            return await asyncssh.connect(settings.host, settings.port, options=options, config=None)
    except TimeoutError:
        raise MachineUnavailable(
            f"login to {settings.name} took longer than {settings.connect_seconds:g} s"
        ) from None
    except (asyncssh.Error, OSError) as error:
        raise login_error(settings, error) from None


def login_error(settings: SshSettings, error: Exception) -> MachineError:
    """Return the error to raise when an attempt to connect has failed."""
    import asyncssh

    reason = settings.without_secrets(error)
    connection = f"the connection {settings.conn_id!r}"
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        expected = "its host_key" if settings.host_key else settings.known_hosts or " and ".join(KNOWN_HOSTS)
        return LoginRefused(
            f"the host key of {settings.name} could not be verified with {expected}: {reason}. Obtain the "
            f"key from the machine's owner, and add it to the extra of {connection} as host_key, or to known_hosts"
        )
    if isinstance(error, asyncssh.PermissionDenied | asyncssh.IllegalUserName):
        return LoginRefused(
            f"{settings.name} rejected the login: {reason}. Check the login and the key or password of {connection}"
        )
    if isinstance(error, asyncssh.ProtocolError) and "authentication failures" in reason:
        return LoginRefused(
            f"{settings.name} rejected the login: {reason}. In the extra of {connection}, set key_file or "
            "private_key to the key that the machine accepts"
        )
    if isinstance(error, asyncssh.KeyExchangeFailed | asyncssh.ProtocolNotSupported):
        return LoginRefused(
            f"{settings.name} supports none of the algorithms that the library may use: {reason}. Check "
            f"ciphers and disabled_algorithms in the extra of {connection}"
        )
    if kind_of_code("ssh", *class_names(error), default=ErrorKind.TEMPORARY) is ErrorKind.TASK:
        return LoginRefused(f"{settings.name} refused the connection: {reason}. Check {connection}")
    if isinstance(error, asyncssh.ConnectionLost | ConnectionResetError):
        return ConnectionDropped(
            f"{settings.name} closed the connection before the login was complete: {reason}"
        )
    if isinstance(error, OSError):
        reason = settings.without_secrets(error.strerror or type(error).__name__)
    return MachineUnavailable(f"{settings.name} cannot be reached: {reason or type(error).__name__}")


def _options(settings: SshSettings, keepalive_interval: float) -> Any:
    import asyncssh

    algorithms: dict[str, Any] = {
        argument: "-" + ",".join(settings.disabled[kind])
        for kind, argument in (
            ("ciphers", "encryption_algs"),
            ("kex", "kex_algs"),
            ("keys", "server_host_key_algs"),
            ("macs", "mac_algs"),
            ("pubkeys", "signature_algs"),
        )
        if settings.disabled.get(kind)
    }
    if settings.ciphers:
        algorithms["encryption_algs"] = list(settings.ciphers)
    if settings.proxy_command:
        algorithms["proxy_command"] = settings.proxy_command
    try:
        return asyncssh.SSHClientConnectionOptions(
            config=None,
            username=settings.username,
            password=settings.password,
            passphrase=settings.passphrase,
            known_hosts=_known_hosts(settings),
            keepalive_interval=keepalive_interval,
            keepalive_count_max=_KEEPALIVES,
            login_timeout=settings.connect_seconds,
            **_keys(settings),
            **algorithms,
        )
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"the connection {settings.conn_id!r} cannot be used; correct the connection: "
            f"{settings.without_secrets(error)}"
        ) from None


def _keys(settings: SshSettings) -> dict[str, Any]:
    """Return the options of asyncssh that contain the credentials for the login.

    If the Airflow connection contains credentials, the options contain only these credentials. Otherwise, asyncssh logs
    in with the keys of the local account, unless ``look_for_keys`` is False. asyncssh never tries both kinds of keys,
    because SSH servers limit how many keys a client may try in one login.
    """
    import asyncssh

    if settings.private_key:
        key = asyncssh.import_private_key(settings.private_key, settings.passphrase)
        return {"client_keys": [key], "agent_path": None}
    if settings.key_file:
        return {"client_keys": [str(Path(settings.key_file).expanduser())], "agent_path": None}
    if settings.password or not settings.look_for_keys:
        return {"client_keys": None}
    return {}


def _known_hosts(settings: SshSettings) -> Any:
    import asyncssh

    if not settings.check_host_key:
        return None
    if settings.host_key:
        return [asyncssh.import_public_key(settings.host_key)], [], []
    if settings.known_hosts:
        return asyncssh.read_known_hosts(str(Path(settings.known_hosts).expanduser()))
    found = [path for path in (Path(name).expanduser() for name in KNOWN_HOSTS) if path.is_file()]
    return asyncssh.read_known_hosts([str(path) for path in found])
