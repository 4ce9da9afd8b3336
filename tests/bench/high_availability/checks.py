"""Our check. It costs nothing, as that of rival_dag.py: what is measured is the waiting."""

from __future__ import annotations

from typing import Any

from deferrable_ops.high_availability import Action, CheckResult, Result


def is_well(**context: Any) -> CheckResult:
    return Result.PASS, Action.CONTINUE
