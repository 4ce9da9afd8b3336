"""Where events come from: each source takes lists of events, and keeps the order of each list."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from deferrable_ops.events import ChannelEvent, KafkaEvent, SqsEvent
from real_airflow.airflow import RealAirflow
from real_airflow.channels import GitHubChannel

if TYPE_CHECKING:
    from real_kafka import RealKafka
    from real_sqs import RealSqs

Events = Sequence[Mapping[str, Any]]
_SENDERS = 8
_PARTITIONS = 3


class Source(Protocol):
    """One channel, topic or queue.

    :ivar name: what an event's specification calls it.
    :ivar inbox_source: what the inbox calls it.
    """

    name: str
    inbox_source: str

    def send(self, lists: Sequence[Events]) -> None:
        """Send all, and return once all is there. The lists' events may come in between each other."""


def all_sources(airflow: RealAirflow, kafka: RealKafka, sqs: RealSqs) -> dict[str, Source]:
    """Make a channel, a topic and a queue that nobody else has, and the connections to them."""
    name = f"events-{uuid.uuid4().hex[:8]}"
    return {
        "channel": ChannelSource(airflow),
        "kafka": KafkaSource(airflow, kafka, name),
        "sqs": SqsSource(airflow, sqs, name),
    }


class ChannelSource:
    """A channel, whose vendor posts an event until it is acknowledged, and some of them again."""

    def __init__(self, airflow: RealAirflow) -> None:
        self._channel = GitHubChannel.add(airflow)
        self.name = self._channel.name
        self.inbox_source = ChannelEvent(self.name).source

    def send(self, lists: Sequence[Events]) -> None:
        """Post the events."""
        with httpx.Client(timeout=30, trust_env=False) as http, ThreadPoolExecutor(_SENDERS) as pool:
            for done in [pool.submit(self._send_list, http, events) for events in lists]:
                done.result()

    def _send_list(self, http: httpx.Client, events: Events) -> None:
        for number, event in enumerate(events):
            receipt = self._post(http, event)
            assert number % 10 or self._post(http, event) == receipt

    def _post(self, http: httpx.Client, event: Mapping[str, Any]) -> Any:
        while True:
            try:
                answer = http.post(self._channel.url, **self._channel.request(event))
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 200:
                return answer.json()
            time.sleep(0.05)


class KafkaSource:
    """A topic of three partitions; each list is in one of them."""

    def __init__(self, airflow: RealAirflow, kafka: RealKafka, name: str) -> None:
        self.name = name
        self.inbox_source = KafkaEvent(name, kafka_conn_id="events_kafka").source
        self._kafka = kafka
        kafka.create_topic(name, _PARTITIONS)
        connect(airflow, "events_kafka", "kafka", extra={"bootstrap.servers": kafka.servers})

    def send(self, lists: Sequence[Events]) -> None:
        """Append the events."""
        for partition in range(_PARTITIONS):
            values = [json.dumps(event).encode() for event in in_turns(lists[partition::_PARTITIONS])]
            self._kafka.produce(self.name, *values, partition=partition)


class SqsSource:
    """A FIFO queue; each list is a group."""

    _VISIBILITY = 4  # seconds for which a message is hidden whose reader was killed

    def __init__(self, airflow: RealAirflow, sqs: RealSqs, name: str) -> None:
        self.name = sqs.create_queue(f"{name}.fifo", visibility=self._VISIBILITY)
        self.inbox_source = SqsEvent(self.name, dedicated=True).source
        self._sqs = sqs
        keys = {"login": sqs.access_key, "password": sqs.secret_key}
        extra = {"region_name": "eu-west-1", "endpoint_url": sqs.url}
        connect(airflow, "events_aws", "aws", **keys, extra=extra)

    def send(self, lists: Sequence[Events]) -> None:
        """Send the events."""
        for number, events in enumerate(lists):
            self._sqs.send_all(self.name, list(events), group=str(number))


def in_turns(lists: Sequence[Events]) -> Iterator[Mapping[str, Any]]:
    """Go through the first of each list, the second of each, and so on."""
    for turn in zip_longest(*lists):
        yield from (event for event in turn if event is not None)


def connect(airflow: RealAirflow, conn_id: str, conn_type: str, **fields: Any) -> None:
    """Make a connection, as a user does in the UI, or change it."""
    body = {"connection_id": conn_id, "conn_type": conn_type, **fields}
    if "extra" in body:
        body["extra"] = json.dumps(body["extra"])
    if airflow.client.find(f"/connections/{conn_id}") is None:
        airflow.client.post("/connections", body)
    else:
        airflow.client.patch(f"/connections/{conn_id}", body)
