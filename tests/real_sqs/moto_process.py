"""moto's server, with FIFO queues that keep their order: python moto_process.py PORT.

moto itself lets two receivers have one group at once, gives the last message of a group first when the visibility
timeout of several is over, and spins while a group is held up. What AWS promises is what is tested here. And it counts
all messages of a queue for each that it gives, to see whether it is four days old: that took 80 ms where it held 300.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from moto.server import main
from moto.sqs.models import SQSBackend

_LOOK_EVERY = 0.02
_LOOK_FOR_PARENT_EVERY = 1.0
_receive = SQSBackend.receive_message
_lock = threading.Lock()


def _receive_in_order(
    self: Any, queue_name: str, count: int, wait_seconds: int, *arguments: Any
) -> list[Any]:
    queue = self.get_queue(queue_name)
    if not queue.fifo_queue:
        return list(_receive(self, queue_name, count, wait_seconds, *arguments))
    give_up = time.monotonic() + wait_seconds
    while True:
        with _lock:
            queue.pending_messages.difference_update([one for one in queue.pending_messages if one.visible])
            messages = list(_receive(self, queue_name, count, 0, *arguments))
        if messages or time.monotonic() > give_up:
            return messages
        time.sleep(_LOOK_EVERY)


def _is_young(self: Any, queue_name: str, message: Any) -> bool:
    return True


def _end_with(parent: int) -> None:
    """End when whoever started this was killed."""
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_PARENT_EVERY)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    setattr(SQSBackend, "is_message_valid_based_on_retention_period", _is_young)  # noqa: B010
    setattr(SQSBackend, "receive_message", _receive_in_order)  # noqa: B010
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
