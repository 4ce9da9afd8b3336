"""What all triggers of a process share: throttling, the end of a task, cancellation and background work."""
