"""The values of the option ``--as`` of ``render`` and ``check``."""

from typing import Final

KINDS: Final = ("plain", "airflow", "ssh")
"""In the order of the configuration classes in ``command.py``."""
