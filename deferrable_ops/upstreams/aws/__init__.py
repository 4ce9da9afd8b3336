"""Airflow connections to AWS, and sessions with AWS clients. All modules that call AWS use this package."""
