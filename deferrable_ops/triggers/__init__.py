"""Triggers, which run in Airflow's Triggerer and do the work of their tasks: one folder per feature."""
