"""Watches the programs of a supervisord, and copies their output to the task's log."""
