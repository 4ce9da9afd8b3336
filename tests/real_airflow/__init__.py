"""A real Airflow for tests and for the demo: four components, each its own process, on SQLite or Postgres."""

from real_airflow.airflow import RealAirflow
from real_airflow.channels import GitHubChannel
from real_airflow.clocks import CompilerMissing, shifted_clock
from real_airflow.databases import Database, announce_airflow, postgres_database, sqlite_database
from real_airflow.environment import PATIENT
from real_airflow.hosts import Host, Hosts, HostsMissing
from real_airflow.older_release import extract_older_release
from real_airflow.outside_dataflow import DONE, RUNNING, DataflowJob, OutsideDataflow
from real_airflow.outside_service import Answer, OutsideService, ReceivedRequest
from real_airflow.postgres import Postgres, PostgresMissing
from real_airflow.processes import Component
from real_airflow.runs import Run, Task, Try
from real_airflow.waiting import wait_until

__all__ = [
    "DONE",
    "PATIENT",
    "RUNNING",
    "Answer",
    "CompilerMissing",
    "Component",
    "Database",
    "DataflowJob",
    "GitHubChannel",
    "Host",
    "Hosts",
    "HostsMissing",
    "OutsideDataflow",
    "OutsideService",
    "Postgres",
    "PostgresMissing",
    "RealAirflow",
    "ReceivedRequest",
    "Run",
    "Task",
    "Try",
    "announce_airflow",
    "extract_older_release",
    "postgres_database",
    "shifted_clock",
    "sqlite_database",
    "wait_until",
]
