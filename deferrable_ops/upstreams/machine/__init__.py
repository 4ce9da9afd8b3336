"""The interface to a machine on which a supervisord runs, and its implementation for the local host."""
