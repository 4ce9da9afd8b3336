"""The section ``[deferrable_ops]`` of Airflow's configuration, read once per use.

Each option can also be given as ``AIRFLOW__DEFERRABLE_OPS__NAME``; sensitive ones as ``..._CMD`` or ``..._SECRET``.
Names, defaults and descriptions are in :mod:`deferrable_ops.provider`, where Airflow reads them.
"""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk.configuration import conf

from deferrable_ops.exceptions import ConfigurationError

SECTION = "deferrable_ops"
ENDPOINT_PREFIX = "/deferrable-ops"
"""Where the API server mounts the endpoint."""


def inbox_url() -> str:
    """Return the inbox's SQLAlchemy URL: the option ``inbox_url``, by default a SQLite file in ``$AIRFLOW_HOME``.

    :raises ConfigurationError: the URL names neither SQLite nor Postgres.
    """
    url = conf.get(SECTION, "inbox_url", fallback="")
    if not url:
        return f"sqlite+aiosqlite:///{_airflow_home() / 'deferrable_ops.db'}"
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ConfigurationError(
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
        raise ConfigurationError(
            f"[{SECTION}] inbox_url starts with {scheme}://; the inbox needs postgresql+asyncpg:// "
            "(or sqlite+aiosqlite:// on a single machine)"
        )
    return f"{driver}://{rest}"


def endpoint_url() -> str | None:
    """Return the URL under which outside services reach the endpoint, without a trailing slash.

    The option ``endpoint_url``, else ``[api] base_url``, its path prefix kept, and ``/deferrable-ops``; None when both
    are unset.
    """
    url = conf.get(SECTION, "endpoint_url", fallback="")
    if url:
        return str(url).rstrip("/")
    base_url = conf.get("api", "base_url", fallback="")
    return f"{base_url.rstrip('/')}{ENDPOINT_PREFIX}" if base_url else None


def auth_token() -> str | None:
    """Return the static token that the route ``PATCH /dag/.../task/.../`` accepts; None turns it off."""
    return str(conf.get(SECTION, "auth_token", fallback="")) or None


def max_payload_bytes() -> int:
    """Return the largest callback body that is accepted, in bytes."""
    return int(conf.getint(SECTION, "max_payload_bytes", fallback=262_144))


def max_xcom_bytes() -> int:
    """Return the size, in bytes of JSON, above which a value stays in the inbox and its XCom is a reference."""
    return int(conf.getint(SECTION, "max_xcom_bytes", fallback=48_000))


def wait_retention_days() -> int:
    """Return for how many days a settled wait is kept."""
    return int(conf.getint(SECTION, "wait_retention_days", fallback=14))


def event_retention_days() -> int:
    """Return for how many days an event is kept: a month, and the window of whoever waits for it."""
    return int(conf.getint(SECTION, "event_retention_days", fallback=40))


def end_from_trigger() -> bool:
    """Return whether tasks may end in the triggerer: the option ``end_from_trigger`` is ``auto`` or ``never``.

    :raises ConfigurationError: it is neither.
    """
    choice = conf.get(SECTION, "end_from_trigger", fallback="auto")
    if choice not in ("auto", "never"):
        raise ConfigurationError(f"[{SECTION}] end_from_trigger = {choice!r}; write auto or never")
    return bool(choice == "auto")


def notify() -> bool:
    """Return whether Postgres' LISTEN/NOTIFY wakes the waits; without it (behind pgbouncer) a sweep does."""
    return bool(conf.getboolean(SECTION, "notify", fallback=True))


def dataflow_emulator_host() -> str | None:
    """Return the ``host:port`` of a fake Dataflow, reached without TLS and credentials; None means Google's own."""
    return str(conf.get(SECTION, "dataflow_emulator_host", fallback="")) or None


def _airflow_home() -> Path:
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
