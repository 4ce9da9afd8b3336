"""Triggers, which run in Airflow's Triggerer and do the work of their tasks: one folder per feature."""

import deferrable_ops.airflow_version  # noqa: F401 - it refuses an Airflow that is too old
