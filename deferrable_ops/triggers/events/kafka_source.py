"""Kafka's records come into the inbox for as long as a wait needs them, from where it has read them up to."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

from deferrable_ops.events import KafkaEvent
from deferrable_ops.inbox.events.events import Events, NewEvent, SourcePosition
from deferrable_ops.triggers.events.intake import Intake
from deferrable_ops.triggers.events.source_request import Need
from deferrable_ops.upstreams.kafka.consumers import Batch, use_kafka


class KafkaUse:
    """Reads what a wait needs of one topic, while its ``async with`` statement lasts.

    :param need: of a :class:`~deferrable_ops.events.KafkaEvent` or several.
    :raises ConfigurationError: on entering; the extra ``kafka`` or the connection is missing, or a setting of it is
        wrong.
    """

    # There are thousands, and a generator for each would take 1 kB.
    __slots__ = ("_cluster", "_need", "_reading")

    def __init__(self, need: Need) -> None:
        self._need = need

    async def __aenter__(self) -> None:
        """Begin to read where the wait has read up to."""
        need, wanted = self._need, cast("tuple[KafkaEvent, ...]", self._need.specifications)
        del self._need  # nor does a wait hold what it has handed on
        offsets = None
        if not need.is_new:  # thousands may begin at once, and each question has a connection to wait for
            offsets = await need.inbox.events.position_of(wanted[0].source, need.wait_id)
        if offsets is not None:
            need.intake.go_on(wanted[0].source, offsets, await need.inbox.events.newest())
        self._cluster = use_kafka(wanted[0].kafka_conn_id, partial(_store, need.inbox.events))
        kafka = await self._cluster.__aenter__()
        self._reading = kafka.subscribe(
            need.wait_id, wanted, since=need.since, offsets=offsets, listener=need.intake
        )
        self._reading.__enter__()

    async def __aexit__(self, *error: object) -> None:
        """Read no more."""
        self._reading.__exit__(*error)
        await self._cluster.__aexit__(None, None, None)


async def _store(events: Events, batch: Batch) -> None:
    new = [
        NewEvent(event.source, event.dedupe_key, event.payload, event.attributes, event.time)
        for event in batch.events
    ]
    positions = [
        SourcePosition(batch.source, wait_id, offsets) for wait_id, offsets in batch.resume_offsets.items()
    ]
    appended = await events.append_all(new, positions=positions)
    for event, commit, asked in zip(batch.events, appended, batch.listeners, strict=True):
        for intake in cast("Iterable[Intake]", asked):
            intake.take_read(commit, event)
