"""A program that writes lines at a steady rate until a file exists: ``python lines.py RATE FILE``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

rate, end = float(sys.argv[1]), Path(sys.argv[2])
began, written = time.monotonic(), 0
while not end.exists():
    time.sleep(0.05)
    # By the clock: on a busy machine, the next turn catches up.
    while written < (time.monotonic() - began) * rate:
        print(f"line {written}", 80 * "x")
        written += 1
    sys.stdout.flush()
print("the last line")
