"""Serves the endpoint standalone, for services that cannot reach the API server.

Several endpoints may share one inbox.
"""

from __future__ import annotations

import asyncio
import gc
import logging.config
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from deferrable_ops import settings
from deferrable_ops.endpoint.app import create_app
from deferrable_ops.endpoint.logs import AccessLog, log_config
from deferrable_ops.endpoint.resources import RETRY_TIMEOUT
from deferrable_ops.exceptions import ConfigurationError, InputError
from deferrable_ops.inbox import use_inbox
from deferrable_ops.inbox.database.engines import is_in_memory, parse_url

log = logging.getLogger(__name__)

# Time to finish the requests in progress.
_SHUTDOWN_SECONDS = 10


def serve_until_interrupted(
    *,
    host: str,
    port: int,
    workers: int,
    trusted_proxies: str,
    certificate: str | None,
    private_key: str | None,
    json_log: bool,
) -> None:
    """Serve the endpoint until SIGINT or SIGTERM.

    :param workers: the number of processes that serve the endpoint.
    :param trusted_proxies: comma-separated addresses of proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto``
        are trusted.
    :param certificate: the path of a TLS certificate. If `certificate` is None, the endpoint serves plain HTTP, for use
        behind a proxy that terminates TLS.
    :param json_log: whether each line of the log is a JSON object.
    :raises InputError: if only one of certificate and private key is given, or if a file does not exist.
    :raises ConfigurationError: if the inbox is a SQLite file that Airflow on this host does not use; see
        :func:`check_inbox`.
    """
    _check_files(certificate, private_key)
    check_inbox()
    # uvicorn's worker processes get only the name of the function.
    create = create_app_with_json_log if json_log else create_standalone_app
    uvicorn.run(
        f"{__name__}:{create.__name__}",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        proxy_headers=True,
        forwarded_allow_ips=trusted_proxies,
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        access_log=False,
        log_config=log_config(as_json=json_log),
    )


def create_standalone_app() -> ASGIApp:
    """Create the app of a process that serves only the endpoint. Each uvicorn worker calls this function."""
    return _create(json_log=False)


def create_app_with_json_log() -> ASGIApp:
    """Create an app like :func:`create_standalone_app`, but with a log whose lines are JSON objects."""
    return _create(json_log=True)


def _create(*, json_log: bool) -> ASGIApp:
    # Importing Airflow has replaced uvicorn's logging configuration, so set it again.
    logging.config.dictConfig(log_config(as_json=json_log))
    log.info("The inbox is %s", inbox_without_secrets())
    app = AccessLog(create_app())
    # Exclude Airflow's modules from garbage collection: traversing them is a fifth of a callback's cost (measured).
    gc.collect()
    gc.freeze()
    return app


def _check_files(certificate: str | None, private_key: str | None) -> None:
    if (certificate is None) != (private_key is None):
        raise InputError(
            "--certificate and --private-key must be given together; give both options, or none of them"
        )
    for option, path in (("--certificate", certificate), ("--private-key", private_key)):
        if path is not None and not Path(path).is_file():
            raise InputError(f"{option}: the file {path} does not exist; correct the path")


def check_inbox() -> None:
    """Check that the inbox is a database that Airflow uses.

    Without this check, an endpoint with a wrong SQLite file would start, and then reject every callback.

    This function does not open a Postgres database, because the endpoint must be able to start while the database is
    down.

    :raises ConfigurationError: if the inbox is a SQLite file in which no component of Airflow on this host was recorded
        in the last week.
    :raises InboxUnavailable: if the SQLite file is locked.
    """
    url = parse_url(settings.inbox_url())
    if url.get_backend_name() != "sqlite":
        return
    if not is_in_memory(url) and Path(str(url.database)).exists() and asyncio.run(_airflow_is_here()):
        return
    raise ConfigurationError(
        f"no Airflow on this host uses the SQLite file {url.database}, which is this endpoint's inbox. Start Airflow's "
        "API server with this release first, and give the endpoint the same AIRFLOW_HOME and inbox_url. If the "
        "endpoint or Airflow runs on several hosts, set [deferrable_ops] inbox_url to one Postgres database everywhere"
    )


async def _airflow_is_here() -> bool:
    async with use_inbox(retry_timeout=RETRY_TIMEOUT) as inbox:
        return await inbox.hosts.airflow_is_here()


def inbox_without_secrets() -> str:
    """Return the kind and address of the inbox's database, without user and password.

    :raises ConfigurationError: if the setting ``inbox_url`` is not usable.
    """
    url = parse_url(settings.inbox_url())
    where = f"{url.host}:{url.port or 5432}/{url.database}" if url.host else url.database
    return f"{url.get_backend_name()} at {where}"
