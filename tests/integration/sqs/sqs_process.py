"""A process that waits for a queue until it is killed: python sqs_process.py INBOX_URL QUEUE_URL."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from uuid import uuid4

from deferrable_ops.events import SqsEvent
from deferrable_ops.events.specifications import specification_to_json
from deferrable_ops.inbox import Attempt, Inbox
from deferrable_ops.inbox.inbox import given_inbox
from deferrable_ops.triggers.events.trigger import EventsTrigger


async def wait(inbox_url: str, queue_url: str) -> None:
    """Wait for a message that never arrives."""
    given_inbox.set(await Inbox.open(inbox_url, retry_timeout=60))
    never = specification_to_json(SqsEvent(queue_url, dedicated=True, match={"never": True}))
    attempt = asdict(Attempt(str(uuid4()), 1, "dag", uuid4().hex, "wait"))
    async for event in EventsTrigger(events={"never": never}, attempt=attempt).run():
        raise AssertionError(event)


if __name__ == "__main__":
    asyncio.run(wait(sys.argv[1], sys.argv[2]))
