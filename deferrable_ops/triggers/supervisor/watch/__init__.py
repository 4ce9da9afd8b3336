"""Watching the programs of a supervisord, and forwarding their output."""
