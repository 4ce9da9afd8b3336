"""Copies the output of programs to the log of the task that watches them.

All tasks of a triggerer share a budget: a maximum number of log lines. If the output has more lines, some lines are
skipped, and the log shows how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, ClassVar, Final

from deferrable_ops.supervisord.log_lines import LogLines, LogPosition
from deferrable_ops.triggers.lifecycle.log_budget import LINE_BYTES, LogBudget, log_budget
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch.log_tail import LogContent, LogTail, SkippedOutput
from deferrable_ops.triggers.supervisor.watch.output_copier import OutputCopier
from deferrable_ops.triggers.supervisor.watch.saved_state import SavedState
from deferrable_ops.upstreams.machine.machine import FileStatus

# After this many lines (a few milliseconds), let the other triggers on the event loop run.
_LINES_PER_TURN: Final = 50
_LINES_READ_PER_TURN: Final = 1000

_NOTHING: Final = SkippedOutput(0, 0)


class LogForwarder(OutputCopier[str]):
    """Copies the output of all programs in a configuration to the task's log.

    If there are more lines than the budget allows, the newest lines are copied.
    """

    read_as: ClassVar[Callable[[LogPosition], LogContent[Any]]] = LogLines

    def __init__(self, host: SupervisorHost, saved: SavedState, budget: LogBudget | None = None) -> None:
        super().__init__(host, saved)
        self._budget = budget or log_budget()
        # Skipped output for which the budget allowed no line in the log yet, by the log's path.
        self._skipped: dict[Path, SkippedOutput] = {}

    async def copy(self, waiting: list[tuple[LogTail[str], FileStatus | None]], *, is_last: bool) -> None:
        """See :meth:`OutputCopier.copy`."""
        left = self._budget.take()
        try:
            for number, (log, status) in enumerate(waiting):
                share = -(-left // (len(waiting) - number))
                left -= await self._copy_log(log, status, share, is_last=is_last)
        finally:
            self._budget.give_back(left)

    async def end(self, logs: list[LogTail[str]]) -> None:
        """See :meth:`OutputCopier.end`."""
        for log in logs:
            if log.path in self._skipped:
                self._report_skipped(log)
            for line in log.finish():
                self._log.info("[%s] %s", log.label, line)

    async def _copy_log(
        self, log: LogTail[str], status: FileStatus | None, share: int, *, is_last: bool
    ) -> int:
        """Copy the newest lines of a log, and return how many lines of the budget the copied lines used.

        :param share: the maximum number of lines of the budget that this log may use.
        """
        # None stands for a gap. The costs are lines of the budget.
        kept: deque[tuple[str | None, int]] = deque()
        cost, read, has_gap = 0, 0, False

        def drop_oldest() -> int:
            nonlocal has_gap
            oldest, paid = kept.popleft()
            if oldest is None:
                has_gap = True
            else:
                self._skip(log, SkippedOutput(1, len(oldest.encode()) + 1))
            return paid

        while True:
            chunk = await log.read(self._machine, status, self._chunk)
            if chunk.has_gap:
                kept.append((None, 0))
            for number, line in enumerate(chunk.parts, 1):
                kept.append((line, _cost(line)))
                cost += kept[-1][1]
                while cost > share:
                    cost -= drop_oldest()
                if not number % _LINES_READ_PER_TURN:
                    await asyncio.sleep(0)
            if not chunk.has_more:
                break
            if not read:
                # Only the newest output can be copied.
                skipped = await log.skip(self._machine, share * LINE_BYTES)
                self._skip(log, skipped)
                while skipped.size and kept:
                    cost -= drop_oldest()
            read += chunk.size
            # A program may write faster than its log is read.
            if read > share * LINE_BYTES + self._chunk and not is_last:
                break
        if has_gap:
            self.report_gap(log)
        if log.path in self._skipped and share:
            self._report_skipped(log)
            cost += 1
        await self._write(log, kept)
        return cost

    def _skip(self, log: LogTail[str], more: SkippedOutput) -> None:
        if not more.size:
            return
        lines, size = self._skipped.get(log.path, _NOTHING)
        known = None if lines is None or more.lines is None else lines + more.lines
        self._skipped[log.path] = SkippedOutput(known, size + more.size)

    def _report_skipped(self, log: LogTail[str]) -> None:
        lines, size = self._skipped.pop(log.path)
        self._log.warning(
            "[%s] skipped %s (%.1f MB) here, because a triggerer's log is slow: all its Supervisors together may "
            "forward at most %g lines per second; the whole output is in %s on %s",
            log.label,
            "lines" if lines is None else f"{lines:,} line{'s' * (lines != 1)}",
            size / 1e6,
            self._budget.rate,
            log.path,
            self._machine.name,
        )

    async def _write(self, log: LogTail[str], lines: deque[tuple[str | None, int]]) -> None:
        for number, (line, _) in enumerate(lines, 1):
            if line is None:
                self.report_gap(log)
            else:
                self._log.info("[%s] %s", log.label, line)
            if not number % _LINES_PER_TURN:
                await asyncio.sleep(0)


def _cost(line: str) -> int:
    """Return how many lines of the budget one line of output uses. The triggerer's log is JSON, in which escaped
    characters make the line longer.
    """
    escaped = encode_basestring(line)
    size = len(escaped) if escaped.isascii() else len(escaped.encode())
    return 1 + size // LINE_BYTES
