"""The work: one trigger a feature, run by Airflow's Triggerer."""
