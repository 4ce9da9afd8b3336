"""The bench of high availability."""
