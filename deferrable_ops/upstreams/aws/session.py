"""Clients of AWS' services, on the event loop and the thread that use them: much of making one blocks.

The one file that reaches into aiobotocore.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from contextlib import AsyncExitStack
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.upstreams.aws.connection import AwsSettings, Role

_FALLBACK_REGION: Final = "us-east-1"  # the region in which requests to servers that are not AWS' are signed
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 30.0  # a long poll takes 20 s
_CONNECTIONS = 1_000  # a long poll holds one
_quiet_threads: Final[set[int]] = set()


def import_aiobotocore() -> None:
    """Import the client library. The first time blocks for long: only in a thread.

    :raises ConfigurationError: the extra ``sqs`` is missing.
    """
    try:
        for name in ("aiobotocore.session", "aiobotocore.config", "aiobotocore.credentials"):
            import_module(name)
    except ImportError as missing:
        raise ConfigurationError(
            f'SQS needs a client that is not installed here ({missing}): pip install "airflow-deferrable-ops[sqs]"'
        ) from missing


class AwsSession:
    """The clients of one connection, each made when it is first asked for.

    Made and used in one thread, in which nothing may be logged at the level DEBUG by botocore: it logs answers, and
    those of STS are credentials.

    :raises ConfigurationError: ``config_kwargs`` are wrong, or the profile cannot be found.
    """

    def __init__(self, settings: AwsSettings) -> None:
        _suppress_debug_logs()
        self.settings = settings
        self._config = _config(settings)
        self._session = _session(settings)
        self._region = settings.region or self._session.get_config_variable("region")
        if settings.role is not None:
            # As the amazon provider does; it has no other way in.
            self._session._credentials = _role_credentials(settings, settings.role, self._sts)
        self._exit = AsyncExitStack()
        self._clients: dict[tuple[str, str | None], Any] = {}

    async def client(self, service: str, region: str | None, endpoint: str | None) -> Any:
        """Return a client.

        :param region: where what is asked for is; None: the connection's own region.
        :param endpoint: a URL, which the connection's own for this service overrides; None: the region's.
        """
        region = region or self._region or _FALLBACK_REGION
        endpoint = self.settings.endpoints.get(service, endpoint)
        key = region, endpoint
        if key not in self._clients:
            making = self._session.create_client(
                service,
                region_name=region,
                endpoint_url=endpoint,
                verify=self.settings.verify,
                config=self._config,
            )
            self._region = self._region or region  # in which the role is asked for
            self._clients[key] = await self._exit.enter_async_context(making)
            _suppress_debug_logs()  # also what has only now been imported
        return self._clients[key]

    async def close(self) -> None:
        """Close all connections."""
        await self._exit.aclose()
        _quiet_threads.discard(threading.get_ident())

    def _sts(self, **arguments: Any) -> Any:
        return _session(self.settings).create_client(
            "sts",
            region_name=self._region or _FALLBACK_REGION,
            endpoint_url=self.settings.endpoints.get("sts"),
            verify=self.settings.verify,
            config=_config(self.settings, **arguments),
        )


def _session(settings: AwsSettings) -> Any:
    from aiobotocore.session import AioSession
    from botocore.exceptions import ProfileNotFound

    session = AioSession(profile=settings.profile)
    session.register_component("data_loader", _loader())
    if settings.access_key:
        session.set_credentials(settings.access_key, settings.secret_key, settings.session_token)
    try:
        session.get_scoped_config()
    except ProfileNotFound as error:
        raise ConfigurationError(
            f"{settings.identity} needs a profile that is not in this machine's AWS configuration: {error}"
        ) from None
    return session


@cache
def _loader() -> Any:
    """Return what reads the descriptions of services. One for all: each keeps megabytes."""
    from botocore.loaders import Loader

    return Loader()


def _config(settings: AwsSettings, **more: Any) -> Any:
    from aiobotocore.config import AioConfig
    from botocore import UNSIGNED
    from botocore.exceptions import BotoCoreError

    given = dict(settings.config)
    if given.get("signature_version") == "unsigned":
        given["signature_version"] = UNSIGNED
    own = {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        "tcp_keepalive": True,
        # Trying again is for us to do: we wait longer, and tell refusals from trouble.
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "max_pool_connections": _CONNECTIONS,
    }
    try:
        config = AioConfig(
            **{**given, **{name: own[name] for name in own if name not in _overridable(given)}, **more}
        )
    except (TypeError, ValueError, BotoCoreError) as error:
        raise ConfigurationError(
            f"the connection {settings.conn_id!r} has config_kwargs that botocore's Config does not take: "
            f"{settings.without_secrets(error)}"
        ) from None
    return config


def _overridable(given: dict[str, Any]) -> set[str]:
    """Return what a connection's own config may say of what is said here."""
    may_say = {"connect_timeout", "tcp_keepalive"}
    seconds = given.get("read_timeout")
    if isinstance(seconds, int | float) and seconds >= _READ_SECONDS:
        may_say.add("read_timeout")
    return may_say & set(given)


def _role_credentials(settings: AwsSettings, role: Role, sts: Any) -> Any:
    from aiobotocore.credentials import AioDeferredRefreshableCredentials
    from botocore import UNSIGNED

    asked = {"RoleSessionName": _session_name(settings), **role.arguments, "RoleArn": role.arn}

    async def refresh() -> dict[str, Any]:
        if role.token_file is None:
            async with sts() as client:
                answer = await client.assume_role(**asked)
        else:
            token = _token(settings, role.token_file)
            async with sts(signature_version=UNSIGNED) as client:
                answer = await client.assume_role_with_web_identity(**asked, WebIdentityToken=token)
        found = answer["Credentials"]
        return {
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expiry_time": found["Expiration"].isoformat(),
        }

    return AioDeferredRefreshableCredentials(refresh, "sts-assume-role")


def _session_name(settings: AwsSettings) -> str:
    """Return the name by which CloudTrail shows what we do; STS' own rule says which characters it may have."""
    return re.sub(r"[^\w+=,.@-]", "", f"deferrable-ops_{settings.conn_id}", flags=re.ASCII)[:64]


def _token(settings: AwsSettings, token_file: str) -> str:
    path = token_file or os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE", "")
    try:
        return Path(path).read_text() if path else _raise_no_token(settings)
    except OSError as error:
        raise ConfigurationError(
            f"the web identity's token of {settings.identity} cannot be read: {error}"
        ) from None


def _raise_no_token(settings: AwsSettings) -> NoReturn:
    raise ConfigurationError(
        f"{settings.identity} needs a web identity's token; set assume_role_with_web_identity_token_file in the "
        "connection's extra, or AWS_WEB_IDENTITY_TOKEN_FILE in the environment"
    )


def _suppress_debug_logs() -> None:
    """Let botocore log nothing at the level DEBUG in this thread, in whichever of its loggers."""
    _quiet_threads.add(threading.get_ident())
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("botocore", "aiobotocore"):
            logging.getLogger(name).addFilter(_is_safe_to_log)  # once, however often it is added


def _is_safe_to_log(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG or record.thread not in _quiet_threads
