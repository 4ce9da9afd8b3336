"""What Airflow learns about the library through the entry point ``apache_airflow_provider``."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description: its configuration section and its TaskFlow decorator."""
    return {
        "package-name": "airflow-deferrable-ops",
        "name": "Deferrable Ops",
        "description": "Tasks that wait in the Triggerer, from their start to their end.",
        "task-decorators": [
            {"name": "webhook", "class-name": "deferrable_ops.operators.webhook.decorator.webhook_task"}
        ],
        "extra-links": [
            "deferrable_ops.operators.webhook.CallbackLink",
            "deferrable_ops.operators.dataflow.DataflowJobLink",
        ],
        "config": {
            "deferrable_ops": {
                "description": "Settings of airflow-deferrable-ops.",
                "options": {
                    "inbox_url": _option(
                        "Database of the inbox. Empty: a SQLite file in $AIRFLOW_HOME, for one machine. For several "
                        "machines a Postgres URL, the same on all of them.",
                        default="",
                        example="postgresql+asyncpg://user:password@host/database",
                        sensitive=True,
                    ),
                    "endpoint_url": _option(
                        "URL under which outside services reach the endpoint. Empty: [api] base_url followed by "
                        "/deferrable-ops.",
                        default="",
                        example="https://hooks.example.com/deferrable-ops",
                    ),
                    "auth_token": _option(
                        "Static bearer token for PATCH /dag/{dag_id}/task/{task_id}/. Empty: only a wait's own token "
                        "is accepted.",
                        default="",
                        sensitive=True,
                    ),
                    "max_payload_bytes": _option(
                        "Largest callback body that is accepted, in bytes.", default="262144", kind="integer"
                    ),
                    "max_xcom_bytes": _option(
                        "A value with more bytes of JSON stays in the inbox, and its XCom is a reference.",
                        default="48000",
                        kind="integer",
                    ),
                    "wait_retention_days": _option(
                        "For how many days a settled wait is kept.", default="14", kind="integer"
                    ),
                    "event_retention_days": _option(
                        "For how many days an event is kept. Its repetitions are told for 30 days more.",
                        default="40",
                        kind="integer",
                    ),
                    "end_from_trigger": _option(
                        "auto: tasks end in the triggerer where nothing needs a worker. never: every task ends on a "
                        "worker.",
                        default="auto",
                    ),
                    "notify": _option(
                        "Wake waits with Postgres' LISTEN/NOTIFY. Turn it off behind a pooler in transaction mode; "
                        "waits are then noticed by a sweep every second.",
                        default="True",
                        kind="boolean",
                    ),
                    "dataflow_emulator_host": _option(
                        "host:port of a fake Dataflow (deferrable_ops.testing.dataflow), reached without TLS and "
                        "credentials. Empty: Google's own.",
                        default="",
                        example="127.0.0.1:8765",
                    ),
                },
            }
        },
    }


def _option(
    description: str,
    *,
    default: str,
    kind: str = "string",
    example: str | None = None,
    sensitive: bool = False,
) -> dict[str, Any]:
    option = {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }
    return option | {"sensitive": True} if sensitive else option
