"""The endpoint on its own, for services that do not reach the API server. Any number of them share one inbox."""

from __future__ import annotations

import copy
import gc
import logging.config
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from deferrable_ops import settings
from deferrable_ops.endpoint.app import create_app
from deferrable_ops.exceptions import ConfigurationError, InputError

_SHUTDOWN_SECONDS = 10  # for requests under way


def serve_until_interrupted(
    *,
    host: str,
    port: int,
    workers: int,
    trusted_proxies: str,
    certificate: str | None,
    private_key: str | None,
) -> None:
    """Serve the endpoint, until SIGINT or SIGTERM.

    :param workers: processes.
    :param trusted_proxies: addresses, separated by commas, whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are
        believed.
    :param certificate: path of a TLS certificate; None serves plain HTTP, for a proxy that terminates TLS.
    :raises InputError: the certificate comes without its key, or either cannot be read.
    """
    _check_files(certificate, private_key)
    uvicorn.run(
        f"{__name__}:{create_app_alone.__name__}",
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
        log_config=_log_config(),
    )


def create_app_alone() -> FastAPI:
    """Return the endpoint for a process that serves nothing else."""
    logging.config.dictConfig(_log_config())  # again: in a worker of uvicorn's, Airflow has set its own since
    app = create_app()
    # Airflow's modules stay. Every full collection would walk them: a fifth of what a callback costs (measured).
    gc.collect()
    gc.freeze()
    return app


def _check_files(certificate: str | None, private_key: str | None) -> None:
    if (certificate is None) != (private_key is None):
        raise InputError("--certificate and --private-key belong together")
    for option, path in (("--certificate", certificate), ("--private-key", private_key)):
        if path is not None and not Path(path).is_file():
            raise InputError(f"{option}: there is no file {path}")


def inbox_without_secrets() -> str:
    """Return where the inbox is, for a human.

    :raises ConfigurationError: the setting ``inbox_url`` is not usable.
    """
    try:
        url = make_url(settings.inbox_url())
    except (SQLAlchemyError, ValueError):
        raise ConfigurationError("[deferrable_ops] inbox_url is not a database URL") from None
    where = f"{url.host}:{url.port or 5432}/{url.database}" if url.host else url.database
    return f"{url.get_backend_name()} at {where}"


def _log_config() -> dict[str, Any]:
    """Return uvicorn's own logging, and the library's in the same form."""
    config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    config["loggers"]["deferrable_ops"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config
