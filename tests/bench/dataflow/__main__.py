"""What a wait for a Dataflow job costs: ``scripts/bench dataflow``."""

from __future__ import annotations

import sys

from bench.common.command import run
from bench.dataflow import polling

if __name__ == "__main__":
    sys.exit(run("dataflow", {"polling": polling.measure}))
