"""Helpers of the commands: parsers, access to the inbox, and printing."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

# Importing Airflow takes seconds, so each command imports what it needs when it runs.
if TYPE_CHECKING:
    from deferrable_ops.inbox import Inbox

RETRY_TIMEOUT = 5.0
# If Airflow finds this environment variable when it is imported, it initializes nothing.
_AS_LIBRARY: Final = "_AIRFLOW__AS_LIBRARY"


def add_command(
    commands: Any, name: str, summary: str, run: Callable[[argparse.Namespace], int] | None = None
) -> argparse.ArgumentParser:
    """Add a command to a parser, and return the command's own parser."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    if run is not None:
        command.set_defaults(run=run)
    return command


def positive(kind: type[Any]) -> Callable[[str], Any]:
    """Return an argparse type that accepts only numbers above 0."""

    def parse(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
        return number

    return parse


@contextmanager
def airflow_as_library() -> Iterator[None]:
    """In the ``with`` block, import Airflow without its logging, its plugins and its metadata database.

    Loading them would take longer than the command itself.
    """
    before = os.environ.get(_AS_LIBRARY)
    # Collections among the thousands of objects of an import find nothing, and take a fifth of the time.
    gc.set_threshold(100_000)
    os.environ[_AS_LIBRARY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_AS_LIBRARY]
        else:
            os.environ[_AS_LIBRARY] = before


def with_inbox(
    work: Callable[[Inbox], Coroutine[Any, Any, Any]], *, retry_timeout: float = RETRY_TIMEOUT
) -> Any:
    """Open the inbox of the setting ``inbox_url``, call the function `work` with this inbox, and return the result."""
    from deferrable_ops.inbox import use_inbox

    async def run() -> Any:
        async with use_inbox(retry_timeout=retry_timeout) as inbox:
            return await work(inbox)

    return asyncio.run(run())


def time_text(moment: float | None) -> str | None:
    """Return a time as an ISO 8601 string in UTC, or None if the time is None."""
    return None if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows as a table with aligned columns."""
    table = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
