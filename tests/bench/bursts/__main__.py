"""How fast many tasks end that are called back at the same time: ``scripts/bench bursts``."""

from __future__ import annotations

import sys

from bench.bursts import ends
from bench.common.command import run

if __name__ == "__main__":
    sys.exit(run("bursts", {"ends": ends.measure}))
