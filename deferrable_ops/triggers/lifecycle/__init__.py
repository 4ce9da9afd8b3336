"""Functions that all triggers of a process share, which end tasks, cancel external work and do background work."""
