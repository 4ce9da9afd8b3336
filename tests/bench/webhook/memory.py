"""Memory per wait: the slope between 1,000 and 10,000 waits, against a bare trigger's in the same runner.

It is the memory that is the process's alone (USS), as the machine pays for it: what Python's allocators
leave unused counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.webhook.processes import triggerer


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it on each database."""
    for left, database in zip((2, 1), setting.databases, strict=True):
        rounds = [
            (_bytes_per_wait(setting, "webhook", database.create()), _bytes_per_wait(setting, "bare", ""))
            for _ in setting.rounds(left)
        ]
        yield ratio(
            f"memory per wait, {database.name}", rounds, target=1.25, against="bare trigger", unit="bytes"
        )


def _bytes_per_wait(setting: Setting, kind: str, inbox_url: str) -> float:
    few, many = (20, 60) if setting.quick else (1_000, 10_000)
    with triggerer(setting, inbox_url) as process:
        process.ask("grow", kind, few)
        before = process.ask("memory")
        process.ask("grow", kind, many)
        return max(1.0, (process.ask("memory") - before) / (many - few))
