"""Clients of outside systems. All triggers of a process share the client of a system."""
