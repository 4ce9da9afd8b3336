"""Watching the programs of a supervisord, and forwarding what they write."""
