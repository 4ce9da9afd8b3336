"""Outside systems, each reached through one shared client for all triggers of a process."""
