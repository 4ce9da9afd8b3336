"""Sends messages to SQS queues. One call to SQS sends up to ten messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from deferrable_ops.events.queues import Queue, queue_of
from deferrable_ops.exceptions import DeferrableOpsError, LaunchRefused, SqsRefused
from deferrable_ops.shared import share
from deferrable_ops.upstreams.aws.session import import_aiobotocore
from deferrable_ops.upstreams.aws.thread import AwsThread
from deferrable_ops.upstreams.sqs.errors import find_refusal, is_about_messages, is_denied, summarize
from deferrable_ops.upstreams.sqs.queues import load_settings

log = logging.getLogger(__name__)

MAX_BATCH_MESSAGES: Final = 10
MAX_BATCH_BYTES: Final = 262_144
"""The largest total size of a batch, in bytes.

Since 2025, AWS accepts batches of four times this size, but other SQS servers may not.
"""


class SqsUnavailable(DeferrableOpsError):
    """Raised if SQS did not respond as expected. After this error, it is unknown whether the messages were sent."""


def use_sender(aws_conn_id: str | None) -> AbstractAsyncContextManager[Sender]:
    """Return a context manager for the SQS sender of an Airflow connection on the running event loop.

    :param aws_conn_id: the id of an Airflow connection; None has the same meaning as in
        :func:`deferrable_ops.upstreams.sqs.queues.use_sqs`.
    :raises ConfigurationError: if the extra ``sqs`` is not installed, or if the Airflow connection is missing or
        invalid.
    """

    async def open_sender() -> Sender:
        settings = await load_settings(aws_conn_id)
        await asyncio.to_thread(import_aiobotocore)
        sender = Sender(settings)
        await sender.start()
        return sender

    return share(("sqs sender", aws_conn_id), open_sender, Sender.stop)


class Sender(AwsThread):
    """Sends SQS messages with the credentials of one Airflow connection."""

    thread_name = "deferrable-ops sqs sender"

    async def send(self, queue_url: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Send messages to a queue. Return the message ids of the messages that SQS accepted. The message ids are in a
        dict, whose keys are the fields ``Id`` of the entries.

        :param entries: at most ten messages, as entries of the SQS call ``SendMessageBatch``.
        :raises LaunchRefused: if SQS rejected a message permanently. The error message shows which message was
            rejected.
        :raises SqsRefused: if SQS refuses the credentials, the queue does not exist, or a permission is missing.
        :raises SqsUnavailable: if it is unknown whether SQS received the messages.
        """
        return await self._run_in_thread(self._send(queue_of(queue_url), entries))

    async def _send(self, queue: Queue, entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        try:
            client = await self._session.client("sqs", queue.region, queue.own_endpoint)
            answer = await client.send_message_batch(QueueUrl=queue.url, Entries=list(entries))
        except Exception as error:
            raise self._translate(error, queue) from None
        for failed in answer.get("Failed") or ():
            detail = f"{failed.get('Code')}: {failed.get('Message') or ''}".rstrip(": ")
            if failed.get("SenderFault"):
                raise LaunchRefused(
                    f"SQS rejects messages[{failed['Id']}] for {queue.url}: {detail}; correct this message"
                )
            log.warning(
                "SQS did not accept messages[%s] for %s; retrying: %s", failed["Id"], queue.url, detail
            )
        return {one["Id"]: one["MessageId"] for one in answer.get("Successful") or ()}

    def _translate(self, error: Exception, queue: Queue) -> DeferrableOpsError:
        if is_denied(error):
            return SqsRefused(
                f"{self._settings.identity} may not call sqs:SendMessage on {queue.arn or queue.url}: "
                f"{summarize(error, self._settings)}; grant this permission. If the queue has its own key, also grant "
                "kms:GenerateDataKey and kms:Decrypt"
            )
        refused = find_refusal(error, self._settings, queue)
        if refused is not None:
            return LaunchRefused(str(refused)) if is_about_messages(error) else refused
        detail = summarize(error, self._settings)
        return SqsUnavailable(f"SQS does not accept messages for {queue.url} now: {detail}")
