"""Functions for all triggers of a process: they end tasks, cancel external work and do background work."""
