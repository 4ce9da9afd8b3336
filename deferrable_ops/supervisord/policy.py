"""How the end of a program changes the state of the task that watches this program, and which notifiers are called."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import Field, model_validator

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.section import Model

_Length = Annotated[timedelta, Field(gt=timedelta(0))]
_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*(\.[^\W\d]\w*)*")

NOTIFIER_FIX: Final = (
    "give AsyncCallback('package.module.Notifier', kwargs={...}), with a notifier class that has async_notify, or with "
    "an async function; the class or function must be in an installed package or in the plugins folder"
)
"""How to correct a notifier that the Triggerer cannot call; the last part of an error message."""


class Action(StrEnum):
    """What the task that watches a program does when the program has ended.

    SUCCESS: the program succeeded. FAIL: the task fails, and Airflow does not retry it. SKIP: the program found no work
    to do; the task is skipped unless another program succeeded. RETRY: the task fails, and Airflow retries it if it has
    ``retries`` left. RETRIGGER: the DAG triggers another run of itself, and that run starts the programs again.
    """

    SUCCESS = "success"
    FAIL = "fail"
    SKIP = "skip"
    RETRY = "retry"
    RETRIGGER = "retrigger"


class ProgramPolicy(Model):
    """What the task that watches a program does when the program has ended, or is in a crash loop.

    :param exit_codes: the action for each exit code of the program. The key -1 stands for the end of a program by any
        signal. For an exit code that is not a key of this dict, supervisord's setting ``exitcodes`` of the program
        applies: a code in that setting is a success. For all other exit codes, the action ``otherwise`` applies.
        supervisord reports an exit code only if the process ran for at least ``startsecs``. So if ``exit_codes`` is
        given, the default value of ``startsecs`` is 0.
    :param otherwise: the action for an exit code that is neither in ``exit_codes`` nor in supervisord's ``exitcodes``,
        for the process state FATAL, and for a program that supervisord never started.
    :param crash_restarts: a program is in a crash loop if it was restarted this number of times within
        ``crash_window``.
    :param crash_window: the length of time in which restarts are counted; a timedelta, or a number of seconds.
    :param crash_delay: length of the first pause, as a timedelta or in seconds. During a pause, the library keeps a
        program in a crash loop stopped. Each pause is twice as long as the previous pause, but at most
        ``crash_longest_delay``. After the program has run for ``crash_window`` without a restart, the next pause has
        the length ``crash_delay`` again.
    :param crash_longest_delay: maximum length of a pause; a timedelta, or a number of seconds.
    :param crash_give_up: maximum number of pauses. If the program is in a crash loop again after that many pauses, the
        action ``otherwise`` applies. If ``crash_give_up`` is 0, the action ``otherwise`` applies at the first crash
        loop.
    :raises InputError: if two parameters contradict each other.
    """

    exit_codes: dict[Annotated[int, Field(ge=-1, le=255)], Action] = Field(default_factory=dict)
    otherwise: Action = Action.RETRIGGER
    crash_restarts: int = Field(default=3, ge=1)
    crash_window: _Length = timedelta(minutes=1)
    crash_delay: _Length = timedelta(seconds=30)
    crash_longest_delay: _Length = timedelta(minutes=10)
    crash_give_up: int = Field(default=3, ge=0)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.crash_longest_delay < self.crash_delay:
            raise InputError("crash_longest_delay is shorter than crash_delay; increase crash_longest_delay")
        if self.otherwise is Action.SUCCESS:
            raise InputError(
                "otherwise=success would make every crash a success; list the successful codes in exit_codes instead"
            )
        return self


class ProgramNotifier(Model):
    """A class with ``async_notify``, or an async function, that the Triggerer calls for each event of a program.

    :param path: the dotted path of the class or function, which must be importable in the Triggerer.
    :param kwargs: arguments of the class or function; JSON data. They may contain secrets.
    """

    path: str
    kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)


def parse_notifiers(given: Any) -> Any:
    """Return the value of ``on_program_event`` as a list of dicts with ``path`` and ``kwargs``.

    :param given: an AsyncCallback of Airflow, a dict, a class or function, its dotted path, or a list of these.
    :raises InputError: if a value cannot be sent to the Triggerer, or its kwargs are not JSON data.
    """
    if given is None:
        return []
    return [_parse(one) for one in (given if isinstance(given, list | tuple) else [given])]


def _parse(given: Any) -> dict[str, Any]:
    path, kwargs = _path_and_kwargs(given)
    # Airflow gives the modules of DAG files names that begin with "unusual_prefix_".
    if (
        not isinstance(path, str)
        or not _PATH.fullmatch(path)
        or path.startswith(("__main__.", "unusual_prefix_"))
    ):
        raise InputError(f"on_program_event={path!r} cannot be imported in the Triggerer; {NOTIFIER_FIX}")
    try:
        is_json = json.loads(json.dumps(kwargs)) == kwargs
    except (TypeError, ValueError):
        is_json = False
    if not is_json or not isinstance(kwargs, Mapping) or "context" in kwargs:
        raise InputError(
            f"the kwargs of on_program_event={path!r} must be a dict of JSON data without the key 'context'; use only "
            "strings, numbers, booleans, None, lists, and dicts whose keys are strings"
        )
    return {"path": path, "kwargs": dict(kwargs)}


def _path_and_kwargs(given: Any) -> tuple[Any, Any]:
    if isinstance(given, str):
        return given, {}
    if isinstance(given, Mapping):
        if unknown := sorted(map(str, given.keys() - {"path", "kwargs"})):
            raise InputError(f"on_program_event has the unknown key {unknown[0]!r}; use path and kwargs")
        return given.get("path"), given.get("kwargs") or {}
    if isinstance(given, ProgramNotifier) or type(given).__name__ == "AsyncCallback":
        return given.path, given.kwargs
    if callable(given) and hasattr(given, "__qualname__"):
        return f"{given.__module__}.{given.__qualname__}", {}
    raise InputError(
        f"on_program_event has an object of the class {type(given).__name__}, which cannot be sent to the Triggerer; "
        f"{NOTIFIER_FIX}"
    )
