"""Stores events and channels, and delivers events to the waiting tasks."""
