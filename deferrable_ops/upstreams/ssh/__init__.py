"""A remote machine over SSH. All callers with the same address share one SSH connection."""
