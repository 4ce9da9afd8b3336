"""Runs the checks ``ready`` and ``healthy`` of programs. The triggerer itself connects to the checked address, also if
the programs run on a remote machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deferrable_ops.checks import HttpCheck, ReadyCheck, TcpCheck
from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration

_CLASSES: Final[dict[str, type[ReadyCheck]]] = {"tcp": TcpCheck, "http": HttpCheck}


def network_check(given: Mapping[str, Any] | None) -> ReadyCheck | None:
    """Return the check that a field of a program describes; None if the field is not set, or is a LogLine.

    :raises InputError: if an argument of the check is invalid.
    """
    for kind, arguments in (given or {}).items():
        if kind in _CLASSES:
            try:
                return _CLASSES[kind](**arguments)
            except TypeError as error:
                # The message names the missing or unknown argument: "TcpCheck.__init__() missing 1 required ...".
                raise InputError(f"{kind}: {str(error).partition('() ')[2]}") from None
    return None


def validate_checks(cfg: SupervisorAirflowConfiguration) -> None:
    """Validate the arguments of the checks of all programs.

    :raises InputError: if an argument is invalid. The error message names the program and the field.
    """
    for name, program in cfg.programs.items():
        for field in ("ready", "healthy"):
            try:
                network_check(getattr(program, field))
            except InputError as error:
                raise InputError(f"{field} of the program {name!r}: {error}") from None


def describe(given: Mapping[str, Any]) -> str:
    """Return the name of the check that a field of a program describes, without secrets."""
    (kind,) = given
    return _CLASSES[kind].__name__ if kind in _CLASSES else f"LogLine({given[kind]['contains']!r})"


async def failure_reason(check: ReadyCheck) -> str | None:
    """Run a check once. Return why it failed; None if it passed."""
    try:
        return await check.failure_reason()
    except Exception as error:
        # For example, a host name that cannot be encoded. The message may contain a secret of a header.
        return f"the check failed with {type(error).__name__}"
