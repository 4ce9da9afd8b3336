"""Reads the sources of a wait while the wait collects its events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from deferrable_ops.events.specifications import ChannelEvent, KafkaEvent, Specification, SqsEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.outcome import Outcome
from deferrable_ops.triggers.events.kafka_source import read_kafka
from deferrable_ops.triggers.events.source_request import SourceRequest
from deferrable_ops.triggers.events.sqs_source import read_sqs

Body = Callable[[], Awaitable[Outcome]]
ReadSource = Callable[[SourceRequest, Body], Awaitable[Outcome]]
"""Awaits the body, and appends the source's events to the inbox meanwhile. All waits of a process share the readers."""

READERS: Final[dict[type[Specification], ReadSource | None]] = {
    # Channel events arrive through the endpoint.
    ChannelEvent: None,
    KafkaEvent: read_kafka,
    SqsEvent: read_sqs,
}


def while_reading(requests: Iterable[SourceRequest], body: Body) -> Awaitable[Outcome]:
    """Return an awaitable that awaits `body` while the requested sources are read, and returns its outcome.

    Not a coroutine function, because each coroutine costs memory, and there are thousands of waits.

    :raises InputError: this version cannot read one of the sources.
    :raises ConfigurationError: when awaited; an extra or a connection is missing, or one of its settings is wrong.
    """
    # The first source is read first: it becomes the outermost body.
    for request in reversed(list(requests)):
        kind: Any = type(request.specification)
        if kind not in READERS:
            known = ", ".join(one.__name__ for one in READERS)
            raise InputError(
                f"{request.specification.source}: this version of airflow-deferrable-ops cannot read a "
                f"{kind.__name__}; wait for one of {known}, or upgrade"
            )
        read = READERS[kind]
        if read is not None:
            body = partial(read, request, body)
    return body()
