"""The values of the option ``--as`` of ``render`` and ``check``."""

from typing import Final

KINDS: Final = ("plain", "airflow", "ssh")
"""The order is the same as that of the configuration classes in ``command.py``."""
