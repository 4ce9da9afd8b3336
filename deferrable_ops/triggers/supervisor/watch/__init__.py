"""Watches the programs of a supervisord, and forwards their output."""
