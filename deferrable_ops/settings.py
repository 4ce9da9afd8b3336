"""Options of the section ``[deferrable_ops]`` of Airflow's configuration.

Each function reads an option again at every call.

The environment variable ``AIRFLOW__DEFERRABLE_OPS__NAME`` also sets the option ``name``. A sensitive option can also be
set with the environment variables ``..._CMD`` and ``..._SECRET``. With ``[core] multi_team``, the environment variable
``AIRFLOW__TEAM___DEFERRABLE_OPS__NAME``, or the section ``[team=deferrable_ops]``, sets the option for one team.

The names, defaults and descriptions of the options are in :mod:`deferrable_ops.provider`, where Airflow reads them.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowConfigException

from deferrable_ops.exceptions import ConfigurationError, DeploymentError

SECTION = "deferrable_ops"
ENDPOINT_PREFIX = "/deferrable-ops"
"""The path under which the API server mounts the endpoint."""

# Airflow sets this variable in the process that runs a task.
_TEAM_OF_TASK: Final = "AIRFLOW_CTX_TEAM_NAME"


def is_multi_team() -> bool:
    """Return whether Airflow's ``[core] multi_team`` is on."""
    return bool(conf.getboolean("core", "multi_team", fallback=False))


def team() -> str | None:
    """Return the name of the team to which this process belongs. Return None if Airflow's ``[core] multi_team`` is off.

    A worker knows the team of its task. A triggerer belongs to the team of its option ``--team-name``. Other processes,
    such as ``deferrable-ops serve``, belong to the team of the option ``[deferrable_ops] team``.
    """
    if not is_multi_team():
        return None
    named = (
        conf.get(SECTION, "team", fallback="") or os.environ.get(_TEAM_OF_TASK) or _triggerer_team(sys.argv)
    )
    return str(named) if named else None


def airflow_knows_team() -> bool:
    """Return whether Airflow's API knows the team of this process, as on a worker, where it knows the task's team.

    In a triggerer, Airflow's API does not know the team.
    """
    return _TEAM_OF_TASK in os.environ


def has_own_option(name: str, team_name: str) -> bool:
    """Return whether a team has its own value of an option, in the environment or in ``airflow.cfg``."""
    variable = f"AIRFLOW__{team_name.upper()}___{SECTION.upper()}__{name.upper()}"
    if any(f"{variable}{suffix}" in os.environ for suffix in ("", "_CMD", "_SECRET")):
        return True
    section = f"{team_name}={SECTION}"
    return bool(conf.has_section(section)) and name in dict(conf.items(section))


def teams_with_inbox() -> set[str]:
    """Return the teams that have an inbox of their own, according to the settings of this process."""
    if not is_multi_team():
        return set()
    variable = re.compile(rf"AIRFLOW__(.+)___{SECTION.upper()}__INBOX_URL(?:_CMD|_SECRET)?")
    named = {found[1] for name in os.environ if (found := variable.fullmatch(name))}
    sections = [name.rpartition("=") for name in conf.sections()]
    listed = {team_name for team_name, _, section in sections if team_name and section == SECTION}
    # An environment variable contains the name in upper case.
    own = {name for name in listed if has_own_option("inbox_url", name)}
    return own | (named - {name.upper() for name in own})


def inbox_url(team_name: str | None = None) -> str:
    """Return the inbox's SQLAlchemy URL: the option ``inbox_url``, by default a SQLite file in ``$AIRFLOW_HOME``.

    :param team_name: the team whose inbox is meant; None means the team of this process.
    :raises DeploymentError: if ``inbox_url`` is not the URL of a SQLite or Postgres database.
    """
    try:
        url = _option("inbox_url", "", team_name=team_name)
    except AirflowConfigException as error:
        # Leave out the error's text, because it may contain the output of a command.
        raise DeploymentError(
            f"[{SECTION}] inbox_url cannot be read ({type(error).__name__}); correct the command in inbox_url_cmd, or "
            "the name of the secret in inbox_url_secret"
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
            f"[{SECTION}] inbox_url starts with {scheme}://, which is not supported; use postgresql+asyncpg:// "
            "(or sqlite+aiosqlite:// on a single machine)"
        )
    return f"{driver}://{rest}"


def endpoint_url() -> str | None:
    """Return the URL under which outside services reach the endpoint, without a trailing slash.

    Return the option ``endpoint_url`` if it is set. If ``endpoint_url`` is not set, return ``[api] base_url`` followed
    by ``/deferrable-ops``. Return None if neither ``endpoint_url`` nor ``base_url`` is set.

    :raises ConfigurationError: if the team of this process has its own ``inbox_url``, but no ``endpoint_url`` of its
        own.
    """
    name = team()
    if name is not None and has_own_option("inbox_url", name) and not has_own_option("endpoint_url", name):
        raise ConfigurationError(
            f"the team {name} has its own inbox_url, but no endpoint_url of its own, so callbacks would not be "
            f"accepted; run `deferrable-ops serve` with AIRFLOW__DEFERRABLE_OPS__TEAM={name}, and set "
            f"AIRFLOW__{name.upper()}___DEFERRABLE_OPS__ENDPOINT_URL to the URL of that endpoint"
        )
    url = _option("endpoint_url", "")
    if url:
        return str(url).rstrip("/")
    base_url = conf.get("api", "base_url", fallback="")
    return f"{base_url.rstrip('/')}{ENDPOINT_PREFIX}" if base_url else None


def auth_token() -> str | None:
    """Return the static token that the route ``PATCH /dag/.../task/.../`` accepts; None if no static token is set."""
    return str(_option("auth_token", "")) or None


def max_payload_bytes() -> int:
    """Return the maximum size of the body of a callback or an event, in bytes."""
    return int(_option("max_payload_bytes", 262_144, conf.getint))


def max_xcom_bytes() -> int:
    """Return the maximum size of an XCom, in bytes of JSON.

    The XCom of a larger value is a reference to the value in the inbox.
    """
    return int(_option("max_xcom_bytes", 48_000, conf.getint))


def wait_retention_days() -> int:
    """Return how many days a settled wait is kept in the inbox."""
    return int(_option("wait_retention_days", 14, conf.getint))


def event_retention_days() -> int:
    """Return how many days an event is kept in the inbox: 40 days by default."""
    return int(_option("event_retention_days", 40, conf.getint))


def end_from_trigger() -> bool:
    """Return whether a trigger may end its task without a worker.

    Return True if ``end_from_trigger`` is ``auto``, and False if it is ``never``.

    :raises ConfigurationError: if ``end_from_trigger`` has another value.
    """
    choice = _option("end_from_trigger", "auto")
    if choice not in ("auto", "never"):
        raise ConfigurationError(
            f"[{SECTION}] end_from_trigger = {choice!r} is not valid; write auto or never"
        )
    return bool(choice == "auto")


def auto_upgrade() -> bool:
    """Return whether a process creates or upgrades the inbox's tables when it opens the inbox."""
    return bool(_option("auto_upgrade", True, conf.getboolean))


def deployment() -> str | None:
    """Return the id of this deployment of Airflow from the option ``deployment``; None if the option is empty.

    If the option is empty, the API server makes the id.
    """
    return str(_option("deployment", "")) or None


def notify() -> bool:
    """Return whether triggers are notified of changed waits by Postgres' LISTEN/NOTIFY.

    Without LISTEN/NOTIFY, for example behind PgBouncer, the inbox is polled every second.
    """
    return bool(_option("notify", True, conf.getboolean))


def protect_log() -> bool:
    """Return whether the log of a triggerer is buffered, so that a slow log cannot block the event loop."""
    return bool(_option("protect_log", True, conf.getboolean))


def forward_logs_lines_per_second() -> int:
    """Return how many lines of output all Supervisors of a triggerer may copy into their tasks' logs, per second.

    :raises ConfigurationError: if the option is negative.
    """
    lines = int(_option("forward_logs_lines_per_second", 200, conf.getint))
    if lines < 0:
        raise ConfigurationError(
            f"[{SECTION}] forward_logs_lines_per_second = {lines} is not valid; write 0 or a positive number"
        )
    return lines


def executor() -> str:
    """Return Airflow's ``[core] executor``: one executor, or several separated by commas."""
    return str(conf.get("core", "executor", fallback=""))


def dataflow_api_endpoint() -> str | None:
    """Return the ``host`` or ``host:port`` of Dataflow's API, or None for the usual host."""
    return str(_option("dataflow_api_endpoint", "")) or None


def dataflow_emulator_host() -> str | None:
    """Return the ``host:port`` of a fake Dataflow, or None for Google's Dataflow.

    The fake Dataflow is used without TLS and credentials.
    """
    return str(_option("dataflow_emulator_host", "")) or None


def _option(
    name: str, default: Any, read: Callable[..., Any] = conf.get, *, team_name: str | None = None
) -> Any:
    """Return the value of an option for a team, by default for the team of this process."""
    owner = team_name or team()
    if owner is not None and has_own_option(name, owner):
        return read(SECTION, name, team_name=owner)
    return read(SECTION, name, fallback=default)


def _triggerer_team(command: Sequence[str]) -> str | None:
    # Airflow does not pass the team on to the triggers. Their process is a fork, so it has the same command line.
    if "triggerer" not in command[1:2]:
        return None
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--team-name")
    return cast("str | None", parser.parse_known_args(command[2:])[0].team_name)


def _airflow_home() -> Path:
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
