"""What 10,000 waits cost while nothing happens, against what 10 cost: CPU time and inbox queries.

A process runs the triggers, the watcher and the chores. Each round is a minute, because a sweep comes once
a minute; all processes are measured during the same minutes. On SQLite the queries are those of the inbox;
the polls of ``PRAGMA data_version``, 20 a second whatever the number of waits, are in the CPU time alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.webhook.processes import triggerer

FEW, MANY = 10, 10_000


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it on each database."""
    seconds, many = (2.0, 50) if setting.quick else (60.0, MANY)
    with ExitStack() as stack:
        processes = []
        for database in setting.databases:
            for count in (FEW, many):
                process = stack.enter_context(triggerer(setting, database.create()))
                process.ask("grow", "webhook", count)
                processes.append(process)
        rounds = []
        for _ in setting.rounds():
            for process in processes:
                process.tell("idle", seconds)
            rounds.append([process.answer() for process in processes])
    for number, database in enumerate(setting.databases):
        few, many_ = 2 * number, 2 * number + 1
        for index, (what, unit) in enumerate((("idle CPU", "% of a core"), ("idle queries", "a second"))):
            scale = 100 if index == 0 else 1
            yield ratio(
                f"{what} at 10,000 waits, {database.name}",
                [(measured[many_][index] * scale, measured[few][index] * scale) for measured in rounds],
                target=1.5,
                against="at 10 waits",
                unit=unit,
            )
