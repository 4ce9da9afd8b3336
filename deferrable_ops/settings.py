"""Options of the section ``[deferrable_ops]`` of Airflow's configuration.

Each function reads an option again at every call.

The environment variable ``AIRFLOW__DEFERRABLE_OPS__NAME`` also sets the option ``name``. A sensitive option can also be
set with the environment variables ``..._CMD`` and ``..._SECRET``. The names, defaults and descriptions of the options
are in :mod:`deferrable_ops.provider`, where Airflow reads them.
"""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowConfigException

from deferrable_ops.exceptions import ConfigurationError, DeploymentError

SECTION = "deferrable_ops"
ENDPOINT_PREFIX = "/deferrable-ops"
"""The path under which the API server mounts the endpoint."""


def inbox_url() -> str:
    """Return the inbox's SQLAlchemy URL: the option ``inbox_url``, by default a SQLite file in ``$AIRFLOW_HOME``.

    :raises DeploymentError: if ``inbox_url`` is not the URL of a SQLite or Postgres database.
    """
    try:
        url = conf.get(SECTION, "inbox_url", fallback="")
    except AirflowConfigException as error:
        # Leave out the error's text, because it may contain the output of a command.
        raise DeploymentError(
            f"[{SECTION}] inbox_url cannot be read from its _CMD or _SECRET option: {type(error).__name__}"
        ) from None
    if not url:
        return f"sqlite+aiosqlite:///{_airflow_home() / 'deferrable_ops.db'}"
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise DeploymentError(
            f"[{SECTION}] inbox_url is not a database URL; "
            "write postgresql+asyncpg://user:password@host/database"
        )
    driver = {
        "sqlite": "sqlite+aiosqlite",
        "sqlite+aiosqlite": "sqlite+aiosqlite",
        "postgres": "postgresql+asyncpg",
        "postgresql": "postgresql+asyncpg",
        "postgresql+asyncpg": "postgresql+asyncpg",
    }.get(scheme)
    if driver is None:
        raise DeploymentError(
            f"[{SECTION}] inbox_url starts with {scheme}://; use postgresql+asyncpg:// "
            "(or sqlite+aiosqlite:// on a single machine)"
        )
    return f"{driver}://{rest}"


def endpoint_url() -> str | None:
    """Return the URL under which outside services reach the endpoint, without a trailing slash.

    Return the option ``endpoint_url`` if it is set. If ``endpoint_url`` is not set, return ``[api] base_url`` followed
    by ``/deferrable-ops``. Return None if neither ``endpoint_url`` nor ``base_url`` is set.
    """
    url = conf.get(SECTION, "endpoint_url", fallback="")
    if url:
        return str(url).rstrip("/")
    base_url = conf.get("api", "base_url", fallback="")
    return f"{base_url.rstrip('/')}{ENDPOINT_PREFIX}" if base_url else None


def auth_token() -> str | None:
    """Return the static token that the route ``PATCH /dag/.../task/.../`` accepts; None if no static token is set."""
    return str(conf.get(SECTION, "auth_token", fallback="")) or None


def max_payload_bytes() -> int:
    """Return the maximum size of the body of a callback or an event, in bytes."""
    return int(conf.getint(SECTION, "max_payload_bytes", fallback=262_144))


def max_xcom_bytes() -> int:
    """Return the maximum size of an XCom, in bytes of JSON.

    The XCom of a larger value is a reference to the value in the inbox.
    """
    return int(conf.getint(SECTION, "max_xcom_bytes", fallback=48_000))


def wait_retention_days() -> int:
    """Return how many days a settled wait is kept in the inbox."""
    return int(conf.getint(SECTION, "wait_retention_days", fallback=14))


def event_retention_days() -> int:
    """Return how many days an event is kept in the inbox: 40 days by default."""
    return int(conf.getint(SECTION, "event_retention_days", fallback=40))


def end_from_trigger() -> bool:
    """Return whether a trigger may end its task without a worker.

    Return True if ``end_from_trigger`` is ``auto``, and False if it is ``never``.

    :raises ConfigurationError: if ``end_from_trigger`` has another value.
    """
    choice = conf.get(SECTION, "end_from_trigger", fallback="auto")
    if choice not in ("auto", "never"):
        raise ConfigurationError(
            f"[{SECTION}] end_from_trigger = {choice!r} is not valid; write auto or never"
        )
    return bool(choice == "auto")


def auto_upgrade() -> bool:
    """Return whether a process creates or upgrades the inbox's tables when it opens the inbox."""
    return bool(conf.getboolean(SECTION, "auto_upgrade", fallback=True))


def deployment() -> str | None:
    """Return the id of this deployment of Airflow from the option ``deployment``; None if the option is empty.

    If the option is empty, the API server makes the id.
    """
    return str(conf.get(SECTION, "deployment", fallback="")) or None


def notify() -> bool:
    """Return whether triggers are notified of changed waits by Postgres' LISTEN/NOTIFY.

    Without LISTEN/NOTIFY, for example behind PgBouncer, the inbox is polled every second.
    """
    return bool(conf.getboolean(SECTION, "notify", fallback=True))


def protect_log() -> bool:
    """Return whether the log of a triggerer is buffered, so that a slow log cannot block the event loop."""
    return bool(conf.getboolean(SECTION, "protect_log", fallback=True))


def executor() -> str:
    """Return Airflow's ``[core] executor``: one executor, or several separated by commas."""
    return str(conf.get("core", "executor", fallback=""))


def dataflow_emulator_host() -> str | None:
    """Return the ``host:port`` of a fake Dataflow, or None for Google's Dataflow.

    The fake Dataflow is used without TLS and credentials.
    """
    return str(conf.get(SECTION, "dataflow_emulator_host", fallback="")) or None


def _airflow_home() -> Path:
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
