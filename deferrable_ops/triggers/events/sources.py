"""Reads the sources of a wait (channels, Kafka topics and SQS queues) while the wait collects its events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from deferrable_ops.events.specifications import ChannelEvent, KafkaEvent, Specification, SqsEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.outages import kafka_source, sqs_source
from deferrable_ops.outcome import Outcome
from deferrable_ops.triggers.events.kafka_source import read_kafka
from deferrable_ops.triggers.events.source_request import SourceRequest
from deferrable_ops.triggers.events.sqs_source import read_sqs

Body = Callable[[], Awaitable[Outcome]]
ReadSource = Callable[[SourceRequest, Body], Awaitable[Outcome]]
"""Awaits the body. Meanwhile, reads the events of a source and stores them in the inbox.

All waiting tasks of a process share the consumers of a source.
"""

READERS: Final[dict[type[Specification], ReadSource | None]] = {
    # Channel events arrive through the endpoint.
    ChannelEvent: None,
    KafkaEvent: read_kafka,
    SqsEvent: read_sqs,
}


def outage_sources(specifications: Iterable[Specification]) -> tuple[str, ...]:
    """Return the names of the Kafka clusters and SQS queues from which the specified events come.

    Outages of these systems are recorded under the same names.
    """
    found: dict[str, None] = {}
    for one in specifications:
        if isinstance(one, KafkaEvent):
            found[kafka_source(one.kafka_conn_id)] = None
        elif isinstance(one, SqsEvent):
            found[sqs_source(one.source)] = None
    return tuple(found)


def while_reading(requests: Iterable[SourceRequest], body: Body) -> Awaitable[Outcome]:
    """Return an awaitable that reads the requested sources until `body` is done, and that returns the outcome of
    `body`.

    This function is not a coroutine function, because each further coroutine costs memory for each of thousands of
    waiting tasks.

    :raises InputError: if this version of the library cannot read one of the sources.
    :raises ConfigurationError: if an extra is not installed, or a connection is missing or has a wrong setting. This
        error is raised when the result is awaited.
    """
    # Wrap in reverse order, so that the first source is the outermost body and is read first.
    for request in reversed(list(requests)):
        kind: Any = type(request.specification)
        if kind not in READERS:
            known = ", ".join(one.__name__ for one in READERS)
            raise InputError(
                f"{request.specification.source}: this version of airflow-deferrable-ops cannot read a "
                f"{kind.__name__}; use one of {known}, or upgrade airflow-deferrable-ops"
            )
        read = READERS[kind]
        if read is not None:
            body = partial(read, request, body)
    return body()
