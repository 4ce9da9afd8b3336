"""SQS with aioboto3, in an environment of its own: it cannot be installed beside the amazon provider."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from real_sqs import RealSqs

WHEELS = Path(__file__).parents[3] / ".venv" / "wheel"
SCRIPT = """
import asyncio, importlib.util, sys
from deferrable_ops.upstreams.aws.connection import AwsSettings
from deferrable_ops.upstreams.aws.session import AwsSession

assert importlib.util.find_spec("airflow") is None
queue, endpoint, region, key, secret = sys.argv[1:]

async def main():
    session = AwsSession(AwsSettings(access_key=key, secret_key=secret, region=region))
    assert type(session._create_client.__self__).__module__.startswith("aioboto3")
    client = await session.client("sqs", region, endpoint)
    sent = await client.send_message_batch(QueueUrl=queue, Entries=[{"Id": "0", "MessageBody": "hello"}])
    answer = await client.receive_message(QueueUrl=queue, WaitTimeSeconds=5)
    [message] = answer["Messages"]
    assert message["MessageId"] == sent["Successful"][0]["MessageId"]
    await client.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
    await session.close()
    print(message["Body"])

asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_messages_are_sent_and_received_with_aioboto3(server: RealSqs, tmp_path: Path) -> None:
    [wheel] = WHEELS.glob("*.whl")
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", tmp_path / "venv"],
        [*install, "aioboto3>=15"],
        [*install, "--no-deps", wheel],
    ):
        subprocess.run(command, check=True)
    queue = server.create_queue("jobs")
    arguments = (queue, server.url, "eu-west-1", server.access_key, server.secret_key)
    done = subprocess.run([python, "-c", SCRIPT, *arguments], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "hello", done.stderr
