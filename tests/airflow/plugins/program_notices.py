"""A notifier that a triggerer can import."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from airflow.sdk import BaseHook, BaseNotifier


class Pager(BaseNotifier):
    """Appends the event, and the host of a connection that only Airflow's database has, to a file."""

    template_fields = ("text",)

    def __init__(self, conn_id: str, text: str) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.text = text

    async def async_notify(self, context: Any) -> None:
        """Read the connection in both ways, and block in between."""
        connection = await BaseHook.aget_connection(self.conn_id)
        time.sleep(2)  # noqa: ASYNC251
        again = BaseHook.get_connection(self.conn_id)
        line = {"text": self.text, "hosts": [connection.host, again.host], **context["event"]}
        with Path(os.environ["SUPERVISOR_FOLDERS"], "notices.jsonl").open("a") as file:  # noqa: ASYNC230
            file.write(f"{json.dumps(line)}\n")
