"""Waits: registration, callbacks, launch claims, cancellations, deadlines and heartbeats."""
