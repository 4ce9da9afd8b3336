"""Invalid arguments are refused when the DAG is parsed."""

from __future__ import annotations

from typing import Any

import pytest
from unit.operators.high_availability.test_operator import CHECK, operator

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.high_availability import HighAvailabilityOperator, TcpCheck


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"python_callable": "not a path"}, "python_callable="),
        ({"python_callable": "nodots"}, "python_callable="),
        ({"python_callable": 5}, "python_callable="),
        ({"python_callable": TcpCheck("h", 1), "op_args": [1]}, "op_args="),
        ({"op_kwargs": {"fn": print}}, "op_kwargs"),
        ({"runtime": -1}, "runtime="),
        ({"endtime": "late"}, "endtime="),
        ({"maxretrigger": -1}, "maxretrigger="),
        ({"reference_date": "today"}, "reference_date="),
        ({"poke_interval": 0}, "poke_interval="),
        ({"timeout": 0}, "timeout="),
        ({"check_timeout": "1"}, "check_timeout="),
        ({"max_wait": -1}, "max_wait="),
        ({"jitter": 2}, "jitter="),
        ({"failure_threshold": 0}, "failure_threshold="),
        ({"pass_trigger_kwargs": {"conf": "[1]"}}, "conf"),
        ({"fail_trigger_kwargs": {"conf": 5}}, "conf"),
    ],
)
def test_invalid_argument_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        operator(**arguments)


def test_operator_requires_a_dag() -> None:
    with pytest.raises(InputError, match="has no DAG"):
        HighAvailabilityOperator(task_id="ha", python_callable=CHECK)
