"""Waits, and what happens to them: registration, callbacks, launches, cancellations, endings."""
