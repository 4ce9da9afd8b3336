"""The operator that publishes messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from deferrable_ops.events.merging import Merge, rules_to_json
from deferrable_ops.events.messages import KafkaMessage, SqsMessage, messages_to_json
from deferrable_ops.operators.base import TriggererOperator, flag
from deferrable_ops.plain_data import plain_copy
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.events.publish.arguments import check_arguments
from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger


class PublishEventOperator(TriggererOperator):
    """Publish one or more messages to a channel, a Kafka topic or an SQS queue. The triggerer publishes the messages.

    A task of another DAG can wait for a message that was published to a channel. Give one destination (`channel`,
    `kafka` or `sqs`) and one content (`payload`, `messages`, `file` or `files`)::

        PublishEventOperator(task_id="announce", channel="loads", payload={"table": "orders", "day": "{{ ds }}"})
        PublishEventOperator(task_id="notify", kafka="etl-finish", messages=[{"table": "orders"}, {"table": "items"}])
        PublishEventOperator(task_id="report", kafka="etl-finish", files=["/data/{{ ds }}/*.jsonl"],
                             merge=Merge(group_by=["db", "table"], combine={"rows": "sum"}))

    The table shows how often one attempt of the task publishes each message, even if triggerers are killed:

    ================================ =============================================================================
    a channel                        exactly once
    Kafka                            exactly once for ``read_committed`` consumers; all messages or none
    Kafka, ``transactional=False``   once; after a triggerer is killed, at most the last 100 records are repeated
    SQS, a FIFO queue                once; a repetition more than 5 minutes later arrives as a second message
    SQS, a standard queue            once; after a kill or a lost response, at most the last 10 are repeated
    ================================ =============================================================================

    A retry of the task publishes all messages again. Each Kafka or SQS message has the header or attribute
    ``deferrable-ops-id``, which consists of the attempt's id and the message's number. With this id, consumers can
    drop repeated messages. The messages are sent in the order in which they are given. The ``metadata`` of a
    channel's event contains ``dag_id``, ``run_id``, ``task_id`` and ``map_index`` of the publishing task. A task that
    waits for the event can select the event by these values. Publishing to a channel needs no secret, and the channel
    does not have to be registered.

    The task's XCom is a dict with ``count`` and, depending on the destination,

    * ``channel``, ``event`` (the number of the last event in the inbox) and ``received_at``,
    * ``topic`` and ``partitions``, each with ``count``, ``first_offset`` and ``last_offset``, or
    * ``queue_url`` and ``message_ids`` (of the first 100).

    :param channel: the name of the channel to which the task publishes: at most 128 characters, each of which is a
        letter, a digit, ``.``, ``_`` or ``-``.
    :param kafka: the name of the existing Kafka topic to which the task publishes. For a transaction, the connection's
        user needs WRITE and DESCRIBE on transactional ids that begin with ``deferrable-ops-``. The user also needs
        READ on the topic, so that the task can recover after a triggerer was killed.
    :param sqs: the URL of the SQS queue to which the task publishes.
    :param payload: the payload of the one message to publish: a JSON value, None by default. For a channel,
        ``[deferrable_ops] max_payload_bytes`` limits the size of the payload in its JSON form. For Kafka and SQS, the
        size limit of the topic or the queue applies. To Kafka and SQS, a string is sent unchanged, and any other value
        is sent as JSON.
    :param messages: a list of the messages to publish, at most 20,000. Each message is a payload, or a
        :class:`~deferrable_ops.events.KafkaMessage` or :class:`~deferrable_ops.events.SqsMessage` with headers,
        attributes and so on.
    :param file: the absolute path of a file that contains the messages to publish. The triggerer reads the file, so
        the file must be readable at this path on the machine of every triggerer.
    :param files: a list of absolute paths of files that contain the messages to publish; the files are read in the
        order of this list. A path with ``*``, ``?`` or ``[...]`` is expanded to the matching files, sorted by name.
        The files may have at most 16 MiB and 20,000 messages in total. If the files contain no messages, the task
        publishes nothing and succeeds.
    :param file_format: "jsonl" (one JSON value per line), "json" (a list of messages) or "text" (one string per line).
        By default, the format is determined by the suffix of the file's name (``.jsonl``, ``.ndjson``, ``.json``,
        ``.txt``, ``.text``, ``.log``).
    :param select: a JMESPath expression that selects the messages from the list of all values of all files. For lines
        like ``{"topic": "etl-finish", "data": [...]}``, use ``"[?topic == 'etl-finish'].data[]"``.
    :param merge: a :class:`~deferrable_ops.events.Merge` or a list of them. A Merge combines the messages of the files
        into fewer messages. A message is published only if the ``match`` of at least one Merge is true for it. The log
        and ``left_over`` in the XCom show how many messages were left out.
    :param key: the key of the Kafka records for messages that have no key of their own. Without `key`, the records of
        all messages without a key go to one partition, so these records keep their order.
    :param group_id: the message group in a FIFO queue for messages that have no group of their own. Without
        `group_id`, all messages of the task without a group are in one group.
    :param transactional: whether Kafka receives all messages in one transaction. If a triggerer is killed during the
        transaction, ``read_committed`` consumers of the topic are delayed until the task continues, at most one minute.
        Set `transactional` to False for Kafka clusters that do not support transactions.
    :param kafka_conn_id: the id of the Airflow connection (type ``kafka``) with which the task publishes to the topic.
    :param aws_conn_id: the id of the Airflow connection (type ``aws``) with which the task publishes to the queue;
        with None, the AWS credentials of the triggerer's machine are used.
    :param relaunch_when_lost: whether the messages are published again to Kafka or SQS after the inbox was lost, or
        after a backup of the inbox was restored that is older than the first publication. By default, the task then
        fails without a retry.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
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
        relaunch_when_lost: bool = False,
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
        self.relaunch_when_lost = flag("relaunch_when_lost", relaunch_when_lost)
        check_arguments(self._arguments())

    def _arguments(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in PublishEventTrigger.arguments}
