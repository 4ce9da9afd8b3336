"""What a webhook wait costs: ``scripts/bench webhook``."""

from __future__ import annotations

import sys

from bench.common.command import run
from bench.webhook import idle, latency, memory, throughput

if __name__ == "__main__":
    sys.exit(
        run(
            "webhook",
            {
                "memory": memory.measure,
                "idle": idle.measure,
                "latency": latency.measure,
                "throughput": throughput.measure,
            },
        )
    )
