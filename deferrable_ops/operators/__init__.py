"""The operators that DAG files import. Each operator defers its task to a trigger."""

import deferrable_ops.airflow_version  # noqa: F401 - it refuses an Airflow that is too old
