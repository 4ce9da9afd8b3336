"""The configuration of an Airflow under test: everything on loopback, and quick."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from real_airflow.databases import Database

# Each user's password is its name.
USERS = {"admin": "admin", "viewer": "viewer"}

# Airflow's defaults suit a cluster. These make the same machinery answer within a test's patience.
QUICK = {
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__API__WORKERS": "1",
}

# For loads of thousands of tasks: a component that is late is not dead.
PATIENT = {
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "300",
    "AIRFLOW__TRIGGERER__RUNNER_HEALTH_CHECK_THRESHOLD": "300",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "300",
}


def environment(
    home: Path,
    address: str,
    port: int,
    dag_folders: Sequence[Path],
    database: Database,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """Return the environment of every component.

    :param home: AIRFLOW_HOME.
    :param address: of the API server.
    :param port: of the API server.
    :param dag_folders: each becomes a DAG bundle named after the folder.
    :param extra: added last.
    """
    url = f"http://{address}:{port}"
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))
    }
    return {
        **inherited,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(
            f"{user}:{role}" for user, role in USERS.items()
        ),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(
            [_bundle(folder) for folder in dag_folders]
        ),
        "AIRFLOW__API__HOST": address,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        # Where a page is cut, rows would be missing from a count without anybody noticing.
        "AIRFLOW__API__MAXIMUM_PAGE_LIMIT": "10000",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        **QUICK,
        **database.environment(),
        **extra,
    }


def write_passwords(home: Path) -> None:
    """Give every user its name as password, before the first API server makes up others."""
    (home / "passwords.json").write_text(json.dumps({user: user for user in USERS}))


def _bundle(folder: Path) -> dict[str, object]:
    return {
        "name": folder.name,
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(folder), "refresh_interval": 5},
    }
