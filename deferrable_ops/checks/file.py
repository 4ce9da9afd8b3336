"""Checks that a file exists and was changed recently."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from deferrable_ops.checks.base import ReadyCheck, require_seconds, require_text


@dataclass
class FileCheck(ReadyCheck):
    """A check that passes if a file exists on the triggerer's machine and was changed in the last `max_age` seconds.

    :param file: the path of a file or directory.
    :param max_age: the maximum time since the file was last changed, in seconds. If `max_age` is None (the default),
        the file may have any age.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    file: str
    max_age: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Validate the arguments of the check."""
        super().__post_init__()
        self.file = str(self.file) if isinstance(self.file, Path) else self.file
        require_text("file", self.file)
        if self.max_age is not None:
            require_seconds("max_age", self.max_age)

    async def failure_reason(self) -> str | None:
        """Call stat() for the file in a thread, because stat() may hang on a network file system.

        Return the reason if the check fails, or None if the check passes.
        """
        try:
            changed_at = (await asyncio.to_thread(Path(self.file).stat)).st_mtime
        except OSError as error:
            return f"{self.file}: {error.strerror or error}"
        age = time.time() - changed_at
        if self.max_age is not None and age > self.max_age:
            return f"{self.file} was changed {age:.0f} s ago, which is longer than max_age={self.max_age:g} s"
        return None
