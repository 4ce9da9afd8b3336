"""The HTTP app that takes callbacks, in Airflow's API server or on its own."""

from deferrable_ops.endpoint.app import create_app

__all__ = ["create_app"]
