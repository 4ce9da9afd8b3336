"""The HTTP app that receives callbacks and events, in Airflow's API server or standalone."""

from deferrable_ops.endpoint.app import create_app

__all__ = ["create_app"]
