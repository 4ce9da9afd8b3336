"""Clients of external systems. All triggers in a process share one client for each
external system.
"""
