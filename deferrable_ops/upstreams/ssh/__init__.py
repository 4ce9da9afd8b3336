"""A remote machine over SSH, with one shared connection per address."""
