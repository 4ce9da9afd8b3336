"""A process that waits as a triggerer does: it registers waits, follows each, and writes down how each ends.

Run as ``python watching.py COUNT FILE``. The inbox is the setting's. One line of JSON for every wait that ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TextIO

from faults.support.load import attempt, new_wait

from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Inbox, WaitState, use_inbox
from deferrable_ops.outcome import outcome_to_json

REGISTERED = "all are registered"


async def watch(count: int, file: TextIO) -> None:
    async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
        registered = asyncio.Barrier(count + 1)
        follow_all = asyncio.gather(*(follow(inbox, number, registered, file) for number in range(count)))
        await registered.wait()
        write(file, REGISTERED)
        await follow_all


async def follow(inbox: Inbox, number: int, registered: asyncio.Barrier, file: TextIO) -> None:
    with inbox.watcher.subscribe(attempt(number).wait_id) as changes:
        wait = await inbox.waits.register(new_wait(number))
        await registered.wait()
        while wait.state is WaitState.WAITING:
            wait = await changes.next()
    assert wait.outcome is not None
    write(file, {"number": number, "outcome": outcome_to_json(wait.outcome)})


def write(file: TextIO, line: object) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


if __name__ == "__main__":
    with Path(sys.argv[2]).open("w") as opened:
        asyncio.run(watch(int(sys.argv[1]), opened))
