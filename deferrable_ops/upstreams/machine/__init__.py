"""The interface to a machine that runs a supervisord, and the implementation of this interface for the local host."""
