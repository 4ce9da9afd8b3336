"""moto's SQS and STS in a process of their own, and what a sender does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from deferrable_ops.upstreams.aws.connection import AwsSettings
from real_airflow.ports import free_port
from real_sqs.proxy import FaultyProxy

_PROCESS = Path(__file__).with_name("moto_process.py")
REGION = "eu-west-1"
ACCOUNT = "123456789012"


class RealSqs:
    """A server that speaks SQS' protocol, for as long as the process or until it is removed.

    :ivar proxy: what stands in front of it for those who are tested.
    :ivar url: where those who are tested reach it.
    """

    access_key, secret_key = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._port = free_port()
        self._origin = f"http://127.0.0.1:{self._port}"
        self._client: Any = None
        self.proxy = FaultyProxy(self._origin)
        self.url = ""

    def start(self) -> None:
        """Start it, and return once it answers."""
        self._process = subprocess.Popen(
            [sys.executable, str(_PROCESS), str(self._port)],
            env={**os.environ, "MOTO_ACCOUNT_ID": ACCOUNT},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.url = self.proxy.start()
        self._client = client("sqs", self._origin)
        give_up = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self._origin}/moto-api/data.json", timeout=5).close()
            except OSError:
                assert time.monotonic() < give_up, "moto's server does not start"
                assert self._process.poll() is None, "moto's server has ended"
                time.sleep(0.05)
            else:
                return

    def remove(self) -> None:
        """Stop it; all queues are gone."""
        self.proxy.stop()
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def create_queue(self, name: str, visibility: int = 30, **attributes: str) -> str:
        """Create a queue, and return the URL by which those who are tested reach it.

        :param visibility: seconds.
        """
        attributes = {"VisibilityTimeout": str(visibility), **attributes}
        if name.endswith(".fifo"):
            attributes["FifoQueue"] = "true"
        self._client.create_queue(QueueName=name, Attributes=attributes)
        return f"{self.url}/{ACCOUNT}/{name}"

    def delete_queue(self, url: str) -> None:
        """Delete a queue."""
        self._client.delete_queue(QueueUrl=self._inside(url))

    def send(self, url: str, payload: Any, *, group: str | None = None, **attributes: str) -> str:
        """Send a message, and return its id.

        :param payload: a text, or what is sent as JSON.
        :param attributes: the message's, all of them text.
        """
        body = payload if isinstance(payload, str) else json.dumps(payload)
        more = (
            {} if group is None else {"MessageGroupId": group, "MessageDeduplicationId": os.urandom(8).hex()}
        )
        sent = self._client.send_message(
            QueueUrl=self._inside(url),
            MessageBody=body,
            MessageAttributes={
                name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
            },
            **more,
        )
        return str(sent["MessageId"])

    def send_all(self, url: str, payloads: list[Any], *, group: str | None = None) -> None:
        """Send many messages, ten at a time."""
        for begin in range(0, len(payloads), 10):
            entries = []
            for number, payload in enumerate(payloads[begin : begin + 10]):
                entry: dict[str, Any] = {"Id": str(number), "MessageBody": json.dumps(payload)}
                if group is not None:
                    entry |= {"MessageGroupId": group, "MessageDeduplicationId": os.urandom(8).hex()}
                entries.append(entry)
            answer = self._client.send_message_batch(QueueUrl=self._inside(url), Entries=entries)
            assert not answer.get("Failed"), answer["Failed"]

    def count(self, url: str) -> int:
        """Return how many messages a queue has, hidden ones included."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self._client.get_queue_attributes(QueueUrl=self._inside(url), AttributeNames=names)
        return sum(int(answer["Attributes"][name]) for name in names)

    def cpu_seconds(self) -> float:
        """Return how much CPU time the server has used."""
        import psutil

        assert self._process is not None, "it was never started"
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def connection(self, conn_id: str = "aws_default", **extra: Any) -> dict[str, str]:
        """Return the environment variable that makes an Airflow connection to it."""
        settings = {"region_name": REGION, "endpoint_url": self.url, **extra}
        value = {
            "conn_type": "aws",
            "login": self.access_key,
            "password": self.secret_key,
            "extra": settings,
        }
        return {f"AIRFLOW_CONN_{conn_id.upper()}": json.dumps(value)}

    def settings(self, **more: Any) -> AwsSettings:
        """Return the settings of a connection to it."""
        settings = AwsSettings(
            conn_id="aws_tests",
            access_key=self.access_key,
            secret_key=self.secret_key,
            region=REGION,
            endpoints={"sqs": self.url, "sts": self.url},
        )
        return replace(settings, **more)

    def _inside(self, url: str) -> str:
        return url.replace(self.url, self._origin)


def name_of(url: str) -> str:
    """Return the name of a queue."""
    return url.rpartition("/")[2]


def client(service: str, endpoint: str, **more: Any) -> Any:
    """Return a client of boto3, for what the tests themselves do."""
    import boto3

    keys = {"aws_access_key_id": RealSqs.access_key, "aws_secret_access_key": RealSqs.secret_key}
    return boto3.client(service, region_name=REGION, endpoint_url=endpoint, **keys, **more)
