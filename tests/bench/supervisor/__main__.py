"""What watching programs costs: ``scripts/bench supervisor``."""

from __future__ import annotations

import sys

from bench.common.command import run
from bench.supervisor import over_ssh, watching

if __name__ == "__main__":
    sys.exit(run("supervisor", {"watching": watching.measure, "ssh": over_ssh.measure}))
