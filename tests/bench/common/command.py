"""The command line of every bench: ``scripts/bench FEATURE [--json] [--quick] [--only FIGURE]``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.common.figures import Figure, as_json, as_table
from bench.common.inboxes import Databases, both_databases

MINUTES = 7.0
"""How long a bench measures: with its start and end it takes at most 8. A busy machine gets fewer rounds."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The conditions of a measurement.

    :param databases: SQLite and Postgres.
    :param folder: for files; the processes write their output to its file ``output``.
    :param quick: True for a run that only shows that the bench works: its figures mean nothing.
    :param ends_at: when no further round may begin, by the monotonic clock.
    """

    databases: list[Databases]
    folder: Path
    quick: bool
    ends_at: float

    @property
    def most_rounds(self) -> int:
        """The most rounds of a figure, whose value is the median of them."""
        return 1 if self.quick else 5

    def rounds(self, loops_left: int = 1) -> Iterator[int]:
        """Yield the number of each round: the first one always, a further one where the time is enough for it.

        :param loops_left: how many such loops, with this one, share the time that is left.
        """
        now = time.monotonic()
        ends_at, longest = now + (self.ends_at - now) / loops_left, 0.0
        for number in range(self.most_rounds):
            began = time.monotonic()
            if number and began + longest > ends_at:
                return
            yield number
            longest = max(longest, time.monotonic() - began)

    @property
    def output(self) -> Path:
        """The file that the processes write to."""
        return self.folder / "output"


Measure = Callable[[Setting], Iterable[Figure]]


def run(bench: str, measures: Mapping[str, Measure]) -> int:
    """Measure, print, and return the exit code: 0 when all targets are met, 1 otherwise.

    :param measures: by name, in the order in which they are measured.
    """
    parser = argparse.ArgumentParser(prog=f"scripts/bench {bench}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--quick", action="store_true", help="show that it works; the figures mean nothing")
    parser.add_argument("--only", choices=measures, help="measure this alone")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        os.environ["AIRFLOW_HOME"] = folder
        figures: list[Figure] = []
        chosen = [name for name in measures if options.only in (None, name)]
        ends_at = time.monotonic() + 60 * MINUTES
        with both_databases(Path(folder)) as databases:
            for number, name in enumerate(chosen):
                now = time.monotonic()
                share = (ends_at - now) / (len(chosen) - number)
                print(f"measuring {name}, for about {max(0.0, share):.0f} s", file=sys.stderr)
                figures += measures[name](Setting(databases, Path(folder), options.quick, now + share))
    print(as_json(bench, figures) if options.json else as_table(figures))
    return 0 if all(figure.met for figure in figures) else 1
