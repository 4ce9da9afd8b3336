"""Importing the operators in a DAG file loads nothing that only a trigger needs."""

from __future__ import annotations

import json
import subprocess
import sys

OPERATORS = ("dataflow", "events", "high_availability", "supervisor", "webhook")
# Each of these takes from 0.1 s of CPU to 2 s. Airflow itself loads what a DAG file loads anyway.
HEAVY = (
    "aioboto3",
    "aiobotocore",
    "aiohttp",
    "aiokafka",
    "airflow.api",
    "airflow.api_fastapi",
    "airflow.executors",
    "airflow.models",
    "airflow.providers.standard.operators.python",
    "airflow.providers.standard.operators.trigger_dagrun",
    "airflow.serialization",
    "airflow_config",
    "airflow_pydantic",
    "alembic",
    "asyncpg",
    "asyncssh",
    "botocore",
    "fastapi",
    "google",
    "grpc",
    "hydra",
    "paramiko",
    "sqlalchemy.ext.asyncio",
    "starlette",
    "supervisor",
    "uvicorn",
)
SCRIPT = """
import json, sys
from airflow.sdk import DAG
before = set(sys.modules)
for name in sys.argv[1:]:
    __import__(f"deferrable_ops.operators.{name}")
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_dag_file_loads_no_heavy_module() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *OPERATORS], capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "deferrable_ops.operators.supervisor" in loaded
    assert [name for name in loaded if f"{name}.".startswith(tuple(f"{heavy}." for heavy in HEAVY))] == []
