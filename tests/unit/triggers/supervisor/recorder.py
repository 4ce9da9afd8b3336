"""A notifier that keeps what it receives."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseNotifier

received: list[Any] = []
"""What notifiers have received; each test empties it."""


class Recorder(BaseNotifier):
    """Keeps its rendered text and the event."""

    template_fields = ("text",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    async def async_notify(self, context: Any) -> None:
        received.append((self.text, context["event"]))
