"""What a wait for an event costs: ``scripts/bench events``."""

from __future__ import annotations

import sys

from bench.common.command import run
from bench.events import kafka, load, memory, sqs

if __name__ == "__main__":
    sys.exit(
        run(
            "events",
            {"kafka": kafka.measure, "memory": memory.measure, "load": load.measure, "sqs": sqs.measure},
        )
    )
