"""The machine on which a supervisord runs: the interface, and its implementation for the local host."""
