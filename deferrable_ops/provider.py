"""The provider's metadata, which Airflow reads through the entry point ``apache_airflow_provider``."""

from __future__ import annotations

from typing import Any

# An integration's name, the page that describes it, and the modules that belong to it in operators/ and triggers/.
_INTEGRATIONS = (
    ("Webhooks", "https://www.standardwebhooks.com/", ("webhook", "events")),
    ("Google Dataflow", "https://cloud.google.com/dataflow/", ("dataflow",)),
    ("Apache Kafka", "https://kafka.apache.org/", ("events",)),
    ("Amazon Simple Queue Service (SQS)", "https://aws.amazon.com/sqs/", ("events",)),
    ("Supervisor", "https://supervisord.org/", ("supervisor",)),
    ("High availability", "https://pypi.org/project/airflow-ha/", ("high_availability",)),
)
_SENSOR_MODULES = ("webhook", "events", "dataflow", "high_availability")


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, as ``provider_info.schema.json`` in Airflow describes it.

    The metadata does not contain the plugin, because Airflow finds the plugin through another entry point.
    """
    return {
        "package-name": "airflow-deferrable-ops",
        "name": "Deferrable Ops",
        "description": "Operators that launch work and wait for it in the Triggerer, without a worker.",
        "integrations": [
            {"integration-name": name, "external-doc-url": url, "tags": ["service"]}
            for name, url, _ in _INTEGRATIONS
        ],
        "operators": _modules("operators"),
        "sensors": _modules("operators", _SENSOR_MODULES),
        "triggers": _modules("triggers"),
        "cli": ["deferrable_ops.cli.airflow_command.airflow_commands"],
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
                        "URL of the inbox's database, which stores waits and events. Empty: a SQLite file in "
                        "$AIRFLOW_HOME, for a single machine. For several machines set the same Postgres URL on all "
                        "of them.",
                        default="",
                        example="postgresql+asyncpg://user:password@host/database",
                        sensitive=True,
                    ),
                    "endpoint_url": _option(
                        "URL under which external services reach the endpoint, which receives callbacks and events. "
                        "Empty: [api] base_url followed by /deferrable-ops.",
                        default="",
                        example="https://hooks.example.com/deferrable-ops",
                    ),
                    "auth_token": _option(
                        "Static bearer token for PATCH /dag/{dag_id}/task/{task_id}/, valid for every waiting task. "
                        "Empty: only the token of the task's own callback URL is accepted.",
                        default="",
                        sensitive=True,
                    ),
                    "max_payload_bytes": _option(
                        "Largest accepted body of a callback or an event, in bytes.",
                        default="262144",
                        kind="integer",
                    ),
                    "max_xcom_bytes": _option(
                        "Largest XCom value, in bytes of JSON. A larger value stays in the inbox, and the XCom is a "
                        "reference that deferrable_ops.fetch() resolves.",
                        default="48000",
                        kind="integer",
                    ),
                    "wait_retention_days": _option(
                        "Days for which the inbox keeps a wait, with its large XCom values, after the wait has ended.",
                        default="14",
                        kind="integer",
                    ),
                    "event_retention_days": _option(
                        "Days for which an event is kept in the inbox. Duplicates are detected for another 30 days.",
                        default="40",
                        kind="integer",
                    ),
                    "end_from_trigger": _option(
                        "auto: a task ends in the triggerer, unless its callbacks, outlets or other settings need a "
                        "worker. never: every task ends on a worker.",
                        default="auto",
                    ),
                    "auto_upgrade": _option(
                        "Create or upgrade the inbox's tables when a process opens the inbox. False: only the command "
                        "deferrable-ops inbox upgrade changes the tables, and tasks wait until this command has run.",
                        default="True",
                        kind="boolean",
                    ),
                    "deployment": _option(
                        "Id of this deployment of Airflow, the same in all its components. Only the deployment that "
                        "owns the inbox launches and cancels external work. Empty: the API server makes an id and "
                        "keeps the id in the Airflow Variable deferrable_ops_deployment.",
                        default="",
                        example="production",
                    ),
                    "team": _option(
                        "With [core] multi_team: the team whose inbox and settings the command deferrable-ops uses, "
                        "for example deferrable-ops serve. Leave this option empty for triggerers and workers, which "
                        "know their team.",
                        default="",
                        example="team_a",
                    ),
                    "notify": _option(
                        "Use Postgres' LISTEN/NOTIFY to notify waiting tasks of changes. Turn this option off behind a "
                        "connection pooler in transaction mode, such as PgBouncer; the inbox is then polled every "
                        "second.",
                        default="True",
                        kind="boolean",
                    ),
                    "protect_log": _option(
                        "Buffer a triggerer's log, so that writing to it never blocks the event loop. Turn "
                        "this option off only to find out whether the buffer causes a problem.",
                        default="True",
                        kind="boolean",
                    ),
                    "forward_logs_lines_per_second": _option(
                        "Lines of output that all Supervisors with forward_logs=True may copy into their tasks' logs, "
                        "per second and triggerer. Further lines are skipped, and counted in the log. A line of more "
                        "than 500 bytes counts as several lines.",
                        default="200",
                        kind="integer",
                    ),
                    "dataflow_api_endpoint": _option(
                        "Host of Dataflow's API, for example of a private or regional endpoint. Empty: dataflow.D, "
                        "where D is the universe domain of the credentials, usually googleapis.com.",
                        default="",
                        example="dataflow.us-east4.rep.googleapis.com",
                    ),
                    "dataflow_emulator_host": _option(
                        "host:port of a fake Dataflow (deferrable_ops.testing.dataflow) for tests, used without TLS "
                        "and credentials. Empty: Google's Dataflow.",
                        default="",
                        example="127.0.0.1:8765",
                    ),
                },
            }
        },
    }


def _modules(layer: str, wanted: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    return [
        {"integration-name": name, "python-modules": modules}
        for name, _, features in _INTEGRATIONS
        if (
            modules := [
                f"deferrable_ops.{layer}.{one}" for one in features if wanted is None or one in wanted
            ]
        )
    ]


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
