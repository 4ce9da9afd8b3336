"""The allowed values of the option ``--as`` of the commands ``render`` and ``check``."""

from typing import Final

KINDS: Final = ("plain", "airflow", "ssh")
"""The kinds have the same order as the configuration classes in ``command.py``."""
