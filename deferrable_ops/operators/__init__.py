"""Operators, which DAG files import: each one defers its task to a trigger."""
