"""The base class of the ready-made checks."""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.results import Action, CheckResult, Result
from deferrable_ops.plain_data import is_known_later

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ReadyCheck:
    """A check whose arguments are plain data, so that a triggerer can create an equal check.

    :param on_pass: the `Action` that the check returns together with ``Result.PASS``.
    :param on_fail: the `Action` that the check returns together with ``Result.FAIL``.
    """

    on_pass: str = Action.CONTINUE
    on_fail: str = Action.RETRIGGER

    def __post_init__(self) -> None:
        """Validate the arguments of the check.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        for name in ("on_pass", "on_fail"):
            try:
                setattr(self, name, Action(getattr(self, name)))
            except ValueError:
                words = ", ".join(f"Action.{action.name}" for action in Action)
                raise InputError(f"{name}={getattr(self, name)!r} must be one of {words}") from None

    @abstractmethod
    async def failure_reason(self) -> str | None:
        """Run the check once. Return the reason if the check fails, or None if the check passes."""

    async def __call__(self) -> CheckResult:
        """Run the check once, and log the reason if the result is ``Result.FAIL``.

        Return ``Result.PASS`` and `on_pass`, or ``Result.FAIL`` and `on_fail`.
        """
        reason = await self.failure_reason()
        if reason is None:
            return Result.PASS, Action(self.on_pass)
        log.warning("The check failed: %s", reason)
        return Result.FAIL, Action(self.on_fail)

    @classmethod
    def path(cls) -> str:
        """Return the dotted path with which a triggerer imports the class."""
        return f"{cls.__module__}.{cls.__qualname__}"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of this check as plain data, from which an equal check can be created."""
        return {
            field.name: str(value) if isinstance(value := getattr(self, field.name), Action) else value
            for field in fields(self)
        }


def require_text(name: str, value: Any) -> None:
    """Check that the value of an argument is a non-empty string or a template.

    :raises InputError: if the value is neither a non-empty string nor a template.
    """
    if not is_known_later(value) and (not isinstance(value, str) or not value):
        raise InputError(f"{name}={value!r} must be a non-empty string")


def require_seconds(name: str, value: Any) -> None:
    """Check that the value of an argument is a number of seconds above zero.

    :raises InputError: if the value is not a number above zero.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InputError(f"{name}={value!r} must be a number of seconds above zero")
