"""Results of checks, and the arguments that checks accept."""

from __future__ import annotations

from typing import Any

import pytest

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability import Action, Result
from deferrable_ops.high_availability.check_calls import accepted_kwargs
from deferrable_ops.high_availability.poll_schedule import check_jitter
from deferrable_ops.high_availability.results import read_result
from deferrable_ops.high_availability.thresholds import Thresholds


@pytest.mark.parametrize("returned", [(Result.PASS, Action.STOP), ("pass", "stop"), ["pass", "stop"]])
def test_result_is_a_pair(returned: Any) -> None:
    assert read_result(returned) == (Result.PASS, Action.STOP)


@pytest.mark.parametrize(
    "returned",
    [
        None,
        True,
        "pass",
        (),
        (Result.PASS,),
        (Action.STOP, Result.PASS),
        (None, Action.STOP),
        ([], {}),
        ("ok", "stop"),
    ],
)
def test_anything_else_is_none(returned: Any) -> None:
    assert read_result(returned) is None


@pytest.mark.parametrize("success, failure", [(0, 1), (1, 0), (True, 1), (1.5, 1), (None, 1)])
def test_threshold_is_a_whole_number_above_zero(success: Any, failure: Any) -> None:
    with pytest.raises(InputError, match="_threshold="):
        Thresholds.of(success, failure)


@pytest.mark.parametrize("jitter", [-0.1, 1.1, True, "0.1", None])
def test_jitter_is_a_share(jitter: Any) -> None:
    with pytest.raises(InputError, match="jitter="):
        check_jitter(jitter)


CONTEXT = {"ds": "2026-01-01", "ti": 1, "url": "https://x"}


def takes_some(url: str, *, ti: int) -> None: ...
def takes_all(**context: Any) -> None: ...
def takes_url_and_all(url: str, **context: Any) -> None: ...
def takes_by_position(url: str, /, ds: str) -> None: ...


@pytest.mark.parametrize(
    "function, op_args, names",
    [
        (takes_some, (), {"url", "ti"}),
        (takes_some, ("https://y",), {"ti"}),
        (takes_all, (), {"ds", "ti", "url"}),
        (takes_url_and_all, ("https://y",), {"ds", "ti"}),
        (takes_by_position, ("https://y",), {"ds"}),
        (lambda: None, (), set()),
        (lambda **kwargs: None, (), {"ds", "ti", "url"}),
    ],
)
def test_check_gets_the_arguments_that_it_accepts(
    function: Any, op_args: tuple[Any, ...], names: set[str]
) -> None:
    assert set(accepted_kwargs(function, op_args, CONTEXT)) == names
