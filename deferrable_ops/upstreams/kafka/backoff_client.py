"""An aiokafka client with exponential backoff. Without this backoff, aiokafka would retry 1,700 times a second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.outages import REPORT_LASTS, outages

# After this many failures in a row, the client checks whether the broker refuses the connection permanently.
_DIAGNOSE_EVERY = 3

FindRefusal = Callable[[str, int], Awaitable[KafkaRefused | None]]
"""A function that connects to a host and port.

The function returns the error if the broker refuses the connection permanently, otherwise None.
"""


def backoff_client(
    topics: Callable[[], Collection[str]],
    refusal: FindRefusal,
    refused: Callable[[KafkaRefused], None],
    source: str,
    **arguments: Any,
) -> Any:
    """Return an aiokafka client that waits longer after each failed connection and after each failed request for
    metadata.

    :param topics: a function that returns the names of the topics whose metadata (partitions and leaders) the client
        must keep up to date.
    :param refusal: a function that connects to the host and port of a broker, and returns an error if the broker
        refuses the connection permanently; otherwise None.
    :param refused: a function that the client calls with the error that `refusal` returned.
    :param source: the name of the cluster in reports of outages.
    :param arguments: the arguments with which aiokafka's client is created.
    """
    from aiokafka.client import AIOKafkaClient

    class BackoffClient(AIOKafkaClient):  # type: ignore[misc]
        """An aiokafka client that keeps one backoff for each broker, and one backoff for requests for metadata."""

        def __init__(self) -> None:
            super().__init__(**arguments)
            self._broker_backoffs: dict[Any, Backoff] = {}
            self._fetch_backoffs: dict[Any, Backoff] = {}
            self._metadata_backoff = Backoff()

        async def ready(self, node_id: Any, *, group: Any = 0) -> bool:
            backoff = self._broker_backoffs.setdefault(node_id, Backoff())
            await backoff.wait()
            is_ready = bool(await super().ready(node_id, group=group))
            if is_ready:
                backoff.succeeded()
                return True
            backoff.failed()
            broker = self.cluster.broker_metadata(node_id)
            if broker is not None and backoff.failures % _DIAGNOSE_EVERY == 0:
                reason = await refusal(broker.host, broker.port)
                if reason is not None:
                    refused(reason)
            return False

        async def send(self, node_id: Any, request: Any, *, group: Any = 0) -> Any:
            response = await super().send(node_id, request, group=group)
            if type(request).__name__.startswith("FetchRequest"):
                backoff = self._fetch_backoffs.setdefault(node_id, Backoff())
                # If a partition has no leader, the broker answers at once instead of waiting for records. So pause
                # before the next fetch.
                if any(partition[1] for _, partitions in response.topics for partition in partitions):
                    await asyncio.sleep(backoff.failed() / 4)
                else:
                    backoff.succeeded()
            return response

        def set_topics(self, assigned: Collection[str]) -> Any:
            return super().set_topics({*topics(), *assigned})

        async def _metadata_update(self, cluster: Any, names: Collection[str]) -> bool:
            await self._metadata_backoff.wait()
            updated = bool(await super()._metadata_update(cluster, names))
            if updated:
                outages.recovered(source)
            else:
                outages.failed(source, "no broker answers", lasts=REPORT_LASTS)
            if updated and _all_led(cluster):
                self._metadata_backoff.succeeded()
            else:
                self._metadata_backoff.failed()
            return updated

    return BackoffClient()


def _all_led(metadata: Any) -> bool:
    return all(
        metadata.leader_for_partition(partition) not in (None, -1)
        for topic in metadata.topics()
        for partition in _partitions(metadata, topic)
    )


def _partitions(metadata: Any, topic: str) -> list[Any]:
    from aiokafka import TopicPartition

    return [TopicPartition(topic, number) for number in metadata.partitions_for_topic(topic) or ()]
