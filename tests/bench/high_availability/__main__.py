"""What watching costs: ``scripts/bench high_availability``."""

from __future__ import annotations

import sys

from bench.common.command import run
from bench.high_availability import polling

if __name__ == "__main__":
    sys.exit(run("high_availability", {"polling": polling.measure}))
