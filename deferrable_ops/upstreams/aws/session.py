"""Creates the clients of AWS services. The clients run in a separate thread, because creating a client blocks.

Only this module imports aiobotocore or aioboto3, and uses aiobotocore's private attributes.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.upstreams.aws.connection import AwsSettings, Role

# The signing region for servers that do not belong to AWS.
_FALLBACK_REGION: Final = "us-east-1"
# The read timeout is longer than a long poll, which takes up to 20 s.
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 30.0
# The limit is high, because each long poll uses one connection.
_CONNECTIONS = 1_000
_quiet_threads: Final[set[int]] = set()


def import_aiobotocore() -> None:
    """Import aiobotocore. Call this function in a thread, because the first import takes long and blocks.

    :raises ConfigurationError: if deferrable-ops was installed without the extra ``sqs``.
    """
    try:
        for name in ("aiobotocore.session", "aiobotocore.config", "aiobotocore.credentials"):
            import_module(name)
    except ImportError as missing:
        raise ConfigurationError(
            f"SQS needs a client library that is not installed ({missing}); install it: "
            'pip install "airflow-deferrable-ops[sqs]"'
        ) from missing


class AwsSession:
    """The AWS clients of one Airflow connection. A client is created when it is used for the first time.

    Create a session in the thread in which it is used. The session suppresses botocore's DEBUG logs in this thread,
    because these logs contain the credentials that STS returns.

    :raises ConfigurationError: if the connection's ``config_kwargs`` are invalid, or the AWS profile of the connection
        does not exist.
    """

    def __init__(self, settings: AwsSettings) -> None:
        _suppress_debug_logs()
        self.settings = settings
        self._config = _config(settings)
        self._session = _session(settings)
        self._create_client = _client_factory(self._session)
        self._region = settings.region or self._session.get_config_variable("region")
        if settings.role is not None:
            # botocore has no public way to set these credentials. The amazon provider sets them in the same way.
            self._session._credentials = _role_credentials(settings, settings.role, self._sts)
        self._exit = AsyncExitStack()
        self._clients: dict[tuple[str, str | None], Any] = {}

    async def client(self, service: str, region: str | None, endpoint: str | None) -> Any:
        """Return a client for an AWS service. The client is created when it is used for the first time.

        :param region: the AWS region of the resource that the client will use. If `region` is None, the region in the
            Airflow connection is used.
        :param endpoint: the URL of the AWS service, for example from the URL of a queue. If the Airflow connection sets
            a URL for this service, the URL in the connection is used instead. If neither gives a URL, botocore's
            default URL for the service in this region is used.
        """
        region = region or self._region or _FALLBACK_REGION
        endpoint = self.settings.endpoints.get(service, endpoint)
        key = region, endpoint
        if key not in self._clients:
            making = self._create_client(
                service,
                region_name=region,
                endpoint_url=endpoint,
                verify=self.settings.verify,
                config=self._config,
            )
            # Without a region in the settings, STS is called in the region of the first client.
            self._region = self._region or region
            self._clients[key] = await self._exit.enter_async_context(making)
            # Creating a client imports more modules of botocore, so suppress the logs of the new loggers, too.
            _suppress_debug_logs()
        return self._clients[key]

    async def close(self) -> None:
        """Close all connections."""
        await self._exit.aclose()
        _quiet_threads.discard(threading.get_ident())

    def _sts(self, **arguments: Any) -> Any:
        return _client_factory(_session(self.settings))(
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
            f"{settings.identity} needs an AWS profile that does not exist in this machine's AWS configuration: "
            f"{error}; add the profile there, or change profile_name"
        ) from None
    return session


def _client_factory(session: Any) -> Callable[..., Any]:
    """Return the function that creates a client. If aioboto3 is installed, aioboto3 provides the function. Otherwise,
    aiobotocore provides it.

    aioboto3 requires one exact version of aiobotocore, whose botocore is too old for the amazon provider. So aioboto3
    and the amazon provider cannot be installed together. The functions of aioboto3 and of aiobotocore have the same
    arguments and create similar clients.
    """
    try:
        aioboto3: Any = import_module("aioboto3")
    except ImportError:
        create: Callable[..., Any] = session.create_client
        return create
    from botocore.loaders import Loader

    # aioboto3 adds a search path to the session's loader, so it must not get the loader that all sessions share.
    session.register_component("data_loader", Loader())
    create = aioboto3.Session(botocore_session=session).client
    session.register_component("data_loader", _loader())
    return create


@cache
def _loader() -> Any:
    """Return the botocore object that loads the descriptions of AWS services.

    All sessions share one such object, because each one needs megabytes of memory.
    """
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
        # botocore must not retry. The caller retries instead: it makes longer pauses, and it does not retry refused
        # calls.
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "max_pool_connections": _CONNECTIONS,
    }
    try:
        config = AioConfig(
            **{**given, **{name: own[name] for name in own if name not in _overridable(given)}, **more}
        )
    except (TypeError, ValueError, BotoCoreError) as error:
        raise ConfigurationError(
            f"the connection {settings.conn_id!r} has config_kwargs that botocore's Config rejects; correct them: "
            f"{settings.without_secrets(error)}"
        ) from None
    return config


def _overridable(given: dict[str, Any]) -> set[str]:
    """Return the names of the timeouts and options that a user can change in ``config_kwargs`` of the Airflow
    connection.
    """
    may_say = {"connect_timeout", "tcp_keepalive"}
    seconds = given.get("read_timeout")
    if isinstance(seconds, int | float) and seconds >= _READ_SECONDS:
        may_say.add("read_timeout")
    return may_say & set(given)


def _role_credentials(settings: AwsSettings, role: Role, sts: Any) -> Any:
    from aiobotocore.credentials import AioDeferredRefreshableCredentials
    from botocore import UNSIGNED

    parameters = {"RoleSessionName": _session_name(settings), **role.arguments, "RoleArn": role.arn}

    async def refresh() -> dict[str, Any]:
        if role.token_file is None:
            async with sts() as client:
                answer = await client.assume_role(**parameters)
        else:
            token = _token(settings, role.token_file)
            async with sts(signature_version=UNSIGNED) as client:
                answer = await client.assume_role_with_web_identity(**parameters, WebIdentityToken=token)
        found = answer["Credentials"]
        return {
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expiry_time": found["Expiration"].isoformat(),
        }

    return AioDeferredRefreshableCredentials(refresh, "sts-assume-role")


def _session_name(settings: AwsSettings) -> str:
    """Return the session name that STS and CloudTrail show for the assumed role. The session name contains only
    characters that STS allows.
    """
    return re.sub(r"[^\w+=,.@-]", "", f"deferrable-ops_{settings.conn_id}", flags=re.ASCII)[:64]


def _token(settings: AwsSettings, token_file: str) -> str:
    path = token_file or os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE", "")
    try:
        return Path(path).read_text() if path else _raise_no_token(settings)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the web identity token file of {settings.identity}; check the path and the permissions of "
            f"the file: {error}"
        ) from None


def _raise_no_token(settings: AwsSettings) -> NoReturn:
    raise ConfigurationError(
        f"{settings.identity} needs a web identity token; set assume_role_with_web_identity_token_file in the "
        "connection's extra, or AWS_WEB_IDENTITY_TOKEN_FILE in the environment"
    )


def _suppress_debug_logs() -> None:
    """Suppress the DEBUG messages that botocore logs in this thread, because these messages can contain credentials."""
    _quiet_threads.add(threading.get_ident())
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("botocore", "aiobotocore"):
            # A logger adds the same filter only once.
            logging.getLogger(name).addFilter(_is_safe_to_log)


def _is_safe_to_log(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG or record.thread not in _quiet_threads
