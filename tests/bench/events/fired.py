"""What fired in this process."""

from __future__ import annotations

from typing import Final

FIRED: Final[dict[str, float]] = {}
"""When the trigger of each wait yielded its event, by the machine's monotonic clock."""
