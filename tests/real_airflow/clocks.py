"""Another machine's clock, for one component."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from datetime import timedelta
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("shifted_clock.c")


class CompilerMissing(Exception):
    """The clock cannot be shifted on this machine; the message says why."""


def shifted_clock(by: timedelta) -> dict[str, str]:
    """Return the environment under which a component's clock is ahead, or behind where `by` is negative.

    Only the time of day is shifted: what waits for an interval waits as long as ever.

    :raises CompilerMissing: there is no C compiler.
    """
    return {"LD_PRELOAD": str(_library()), "CLOCK_SHIFT": f"{by.total_seconds():.0f}"}


@cache
def _library() -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        raise CompilerMissing("no C compiler (cc) on this machine, to build the library that shifts a clock")
    library = Path(tempfile.mkdtemp(prefix="shifted-clock-")) / "shifted_clock.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library
