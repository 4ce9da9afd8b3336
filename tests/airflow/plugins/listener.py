"""A listener, as OpenLineage is one, installed only in processes that are given LISTENER_FILE."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin


class Listener:
    """Writes down the tasks that succeed."""

    @hookimpl
    def on_task_instance_success(self, previous_state: Any, task_instance: Any) -> None:
        with Path(os.environ["LISTENER_FILE"]).open("a") as heard:
            heard.write(f"{task_instance.dag_id}.{task_instance.task_id}\n")


class ListenerPlugin(AirflowPlugin):
    """Installs the listener."""

    name = "listener"
    listeners = [Listener()] if "LISTENER_FILE" in os.environ else []
