"""Whether what is published after a restart is what was published before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from deferrable_ops.exceptions import InputError


def fingerprint(messages: Sequence[Any]) -> str:
    """Return a short text that is the same for the same messages only."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(repr(message).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]


def check_unchanged(noted: Mapping[str, Any], same: str) -> None:
    """Check that what is published goes on where it was left off.

    :param noted: the progress of the wait.
    :raises InputError: it is something else now: a file was changed meanwhile.
    """
    if noted.get("same", same) != same:
        raise InputError(
            f"what is to be published changed after the first {noted['published']} messages were, and a triggerer was "
            "restarted: write a file under another name first, and rename it once it is complete"
        )
