"""Publish an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from deferrable_ops.events.payloads import DEEPEST
from deferrable_ops.events.specifications import ChannelEvent
from deferrable_ops.operators.base import TriggererOperator
from deferrable_ops.plain_data import is_known_later, plain_copy
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.events_arguments import check_payload
from deferrable_ops.triggers.events_publish import PublishEventTrigger


class PublishEventOperator(TriggererOperator):
    """Post an event to a channel, once an attempt, so that one DAG can release another.

    The channel needs no secret for this, nor to be known to the endpoint. The task's XCom is a dict with ``channel``,
    ``event`` (its number in the inbox) and ``received_at``. A wait can match the publisher, in ``metadata``:
    ``dag_id``, ``run_id``, ``task_id`` and ``map_index``.

    :param channel: the channel's name: letters, digits, ``.``, ``_`` and ``-``, at most 128.
    :param payload: a JSON value; at most ``[deferrable_ops] max_payload_bytes`` of JSON.
    :raises InputError: an argument is wrong; the message names it and the fix.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = PublishEventTrigger
    template_fields: Sequence[str] = ("channel", "payload")
    template_fields_renderers: ClassVar[dict[str, str]] = {"payload": "json"}
    ui_color = "#efe5fb"

    def __init__(self, *, channel: str, payload: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        ChannelEvent(channel)
        self.channel = channel
        self.payload = plain_copy("payload=", payload, DEEPEST)
        if not _is_known_later(self.payload):
            check_payload(self.payload)


def _is_known_later(value: Any) -> bool:
    """Return whether there is a template or another task's output anywhere in plain data."""
    if isinstance(value, dict):
        return any(map(_is_known_later, value.values()))
    if isinstance(value, list):
        return any(map(_is_known_later, value))
    return is_known_later(value)
