"""The HTTP app that receives callbacks and events, in Airflow's API server or standalone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deferrable_ops.endpoint.app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    # The commands use parts of this package, and FastAPI takes half a second to import.
    if name == "create_app":
        from deferrable_ops.endpoint.app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
