"""Publish events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from deferrable_ops.events.merging import Merge, rules_to_json
from deferrable_ops.events.messages import KafkaMessage, SqsMessage, messages_to_json
from deferrable_ops.operators.base import TriggererOperator
from deferrable_ops.plain_data import plain_copy
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.events.publish.arguments import check_arguments
from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger


class PublishEventOperator(TriggererOperator):
    """Publish one event or many, from the triggerer: to a channel, so that one DAG can release another, to a Kafka
    topic, or to an SQS queue.

    Give one destination and one kind of content::

        PublishEventOperator(task_id="announce", channel="loads", payload={"table": "orders", "day": "{{ ds }}"})
        PublishEventOperator(task_id="tell", kafka="etl-finish", messages=[{"table": "orders"}, {"table": "payments"}])
        PublishEventOperator(task_id="report", kafka="etl-finish", files=["/data/{{ ds }}/*.jsonl"],
                             merge=Merge(group_by=["db", "table"], combine={"rows": "sum"}))

    How often each message is published by one attempt of the task, whatever is killed meanwhile:

    ================================ =============================================================================
    a channel                        once
    Kafka                            once, for consumers that read what is committed, and all messages or none
    Kafka, ``transactional=False``   once; a triggerer that is killed repeats at most the last 100
    SQS, a FIFO queue                once; those that are repeated more than 5 minutes later come twice
    SQS, a standard queue            once; a triggerer that is killed, or an answer lost, repeats at most the last 10
    ================================ =============================================================================

    A retry of the task publishes anew. To Kafka and SQS each message carries the header or attribute
    ``deferrable-ops-id``, the attempt's id and the message's number: a repetition has the same one. Messages are sent
    in their order. A channel's waits can match the publisher, in ``metadata``: ``dag_id``, ``run_id``, ``task_id`` and
    ``map_index``; the channel needs no secret for this, nor to be known to the endpoint.

    The task's XCom is a dict with ``count``, and ``channel``, ``event`` (the last one's number in the inbox) and
    ``received_at``; or ``topic`` and ``partitions``, each with ``count``, ``first_offset`` and ``last_offset``; or
    ``queue_url`` and ``message_ids`` (of the first 100).

    :param channel: a channel's name: letters, digits, ``.``, ``_`` and ``-``, at most 128.
    :param kafka: a topic. It must exist, and with a transaction the user of the connection needs WRITE and DESCRIBE on
        the transactional ids that begin with ``deferrable-ops-``, and READ on the topic after a triggerer was killed.
    :param sqs: a queue's URL.
    :param payload: a JSON value, None by default. A channel takes at most ``[deferrable_ops] max_payload_bytes`` of
        JSON, the others what the topic or the queue takes. A text is sent to Kafka and SQS as it is, all else as JSON.
    :param messages: a list of payloads, each plain or as a :class:`~deferrable_ops.events.KafkaMessage` or
        :class:`~deferrable_ops.events.SqsMessage` with what it carries beside; at most 20,000.
    :param file: the absolute path of a file of messages, which every triggerer must reach under it: it is read there.
    :param files: several of them, one after the other; ``*``, ``?`` and ``[...]`` stand for all that there are, in the
        order of their names. At most 16 MiB and 20,000 messages together. A file without messages publishes nothing.
    :param file_format: "jsonl" (a JSON value a line), "json" (a list of messages) or "text" (a text a line); by default
        what the files' names say (``.jsonl``, ``.ndjson``, ``.json``, ``.txt``, ``.text``, ``.log``).
    :param select: a JMESPath expression that picks the messages out of the list of all values of all files. Lines as
        ``{"topic": "etl-finish", "data": [...]}`` are read by ``"[?topic == 'etl-finish'].data[]"``.
    :param merge: a :class:`~deferrable_ops.events.Merge` or several of them, by which messages of the files become
        one. What none of them takes is not published, which the log and the XCom's ``left_over`` tell.
    :param key: the key of all Kafka records that have none of their own. Those without any come into one partition of
        the task's own, so that they keep their order.
    :param group_id: the message group, in a FIFO queue, of all messages that have none of their own; by default one
        for the task.
    :param transactional: whether Kafka takes all messages of the task at once, or none. A triggerer that is killed
        meanwhile holds up those who read what is committed until the task goes on, for at most a minute. False, for
        clusters that have no transactions.
    :param kafka_conn_id: an Airflow connection of the type Kafka.
    :param aws_conn_id: an Airflow connection of the type Amazon Web Services; None: the machine's own credentials.
    :raises InputError: an argument is wrong; the message names it and the fix.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = PublishEventTrigger
    template_fields: Sequence[str] = (
        "channel",
        "kafka",
        "sqs",
        "payload",
        "messages",
        "file",
        "files",
        "select",
        "merge",
        "key",
        "group_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "payload": "json",
        "messages": "json",
        "merge": "json",
    }
    ui_color = "#efe5fb"

    def __init__(
        self,
        *,
        channel: str | None = None,
        kafka: str | None = None,
        sqs: str | None = None,
        payload: Any = None,
        messages: Sequence[Any | KafkaMessage | SqsMessage] | None = None,
        file: str | None = None,
        files: Sequence[str] | None = None,
        file_format: str | None = None,
        select: str | None = None,
        merge: Merge | Sequence[Merge] | None = None,
        key: str | None = None,
        group_id: str | None = None,
        transactional: bool = True,
        kafka_conn_id: str = "kafka_default",
        aws_conn_id: str | None = "aws_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channel = channel
        self.kafka = kafka
        self.sqs = sqs
        self.payload = plain_copy("payload=", payload)
        self.messages = None if messages is None else messages_to_json(messages)
        self.file = file
        self.files = list(files) if isinstance(files, tuple) else files
        self.file_format = file_format
        self.select = select
        self.merge = None if merge is None else rules_to_json(merge)
        self.key = key
        self.group_id = group_id
        self.transactional = transactional
        self.kafka_conn_id = kafka_conn_id
        self.aws_conn_id = aws_conn_id
        check_arguments(self._given())

    def _given(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in PublishEventTrigger.arguments}
