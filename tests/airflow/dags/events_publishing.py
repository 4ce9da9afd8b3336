"""Publishes to all three destinations, and waits for what was published. Where these are comes with the run's conf."""

from __future__ import annotations

from airflow.sdk import DAG

from deferrable_ops.events import ChannelEvent, KafkaEvent, KafkaMessage, Merge, SqsEvent, SqsMessage
from deferrable_ops.operators.events import MultiEventSensor, PublishEventOperator

RUN = "{{ dag_run.conf['run'] }}"
CHANNEL = "{{ dag_run.conf['channel'] }}"
TOPIC = "{{ dag_run.conf['kafka'] }}"
QUEUE = "{{ dag_run.conf['sqs'] }}"
CONNECTIONS = {"kafka_conn_id": "events_kafka", "aws_conn_id": "events_aws"}

with DAG("events_publish", schedule=None):
    payload = {"run": RUN, "kind": "published"}
    PublishEventOperator(task_id="to_channel", channel=CHANNEL, payload=payload)
    PublishEventOperator(
        task_id="to_kafka",
        kafka=TOPIC,
        messages=[
            {"run": RUN, "kind": "other"},
            KafkaMessage(payload, key=RUN, headers={"of": "{{ task.task_id }}"}),
        ],
        **CONNECTIONS,
    )
    PublishEventOperator(
        task_id="to_sqs",
        sqs=QUEUE,
        messages=[SqsMessage(payload, attributes={"run": RUN})],
        **CONNECTIONS,
    )

with DAG("events_published", schedule=None):
    match = {"run": RUN, "kind": "published"}
    MultiEventSensor(
        task_id="wait",
        events={
            "channel": ChannelEvent(CHANNEL, match={**match, "metadata": {"task_id": "to_channel"}}),
            "kafka": KafkaEvent(
                TOPIC,
                match={**match, "key": RUN, "headers": {"of": "to_kafka"}},
                kafka_conn_id="events_kafka",
            ),
            "sqs": SqsEvent(
                QUEUE, dedicated=True, match={**match, "attributes": {"run": RUN}}, aws_conn_id="events_aws"
            ),
        },
    )

with DAG("events_publish_files", schedule=None):
    FILES = "{{ dag_run.conf['files'] }}"
    PublishEventOperator(task_id="all", kafka=TOPIC, files=[FILES], **CONNECTIONS)
    PublishEventOperator(
        task_id="merged",
        channel=CHANNEL,
        files=[FILES],
        merge=Merge({"run": RUN}, group_by=["kind"], combine={"n": "max", "rows": "sum"}),
    )
