"""Shared by the tests of high availability."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from deferrable_ops.high_availability.facts import RunFacts

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def facts(
    conf: dict[str, Any] | None = None, params: dict[str, Any] | None = None, **moments: datetime | None
) -> RunFacts:
    """Return the facts of a run that started at noon, for the day before."""
    times: dict[str, datetime | None] = {
        "logical_date": datetime(2026, 2, 28, tzinfo=UTC),
        "data_interval_start": datetime(2026, 2, 28, tzinfo=UTC),
        "data_interval_end": datetime(2026, 3, 1, tzinfo=UTC),
        "run_after": datetime(2026, 3, 1, 11, tzinfo=UTC),
        "start_date": START,
        **moments,
    }
    moments_json = {name: None if moment is None else moment.isoformat() for name, moment in times.items()}
    return RunFacts("dag", "run", "manual", moments_json, conf or {}, params or {})
