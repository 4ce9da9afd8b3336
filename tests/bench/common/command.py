"""The command line of every bench: ``scripts/bench FEATURE [--json] [--quick] [--only FIGURE]``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.common.figures import Figure, as_json, as_table
from bench.common.inboxes import Databases, both_databases


@dataclass(frozen=True, slots=True)
class Setting:
    """In what a figure is measured.

    :param databases: SQLite and Postgres.
    :param folder: for files; the processes' output is in its file ``output``.
    :param quick: True for a run that shows only that the bench works: its figures mean nothing.
    """

    databases: list[Databases]
    folder: Path
    quick: bool

    @property
    def rounds(self) -> int:
        """How often each figure is measured; its value is the median."""
        return 1 if self.quick else 5

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
        with both_databases(Path(folder)) as databases:
            for name, measure in measures.items():
                if options.only in (None, name):
                    print(f"measuring {name}", file=sys.stderr)
                    figures += measure(Setting(databases, Path(folder), options.quick))
    print(as_json(bench, figures) if options.json else as_table(figures))
    return 0 if all(figure.met for figure in figures) else 1
