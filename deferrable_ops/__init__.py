"""Airflow operators that do all of their work in the Triggerer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deferrable_ops.outcome import Failure, Outcome, Skip, Success

if TYPE_CHECKING:
    from deferrable_ops.inbox.large_values import fetch

__version__ = "0.1.0"
__all__ = ["Failure", "Outcome", "Skip", "Success", "__version__", "fetch"]


def __getattr__(name: str) -> Any:
    # Airflow imports this package in every component, for its plugin, so SQLAlchemy is imported at first use only.
    if name == "fetch":
        from deferrable_ops.inbox.large_values import fetch

        return fetch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
