"""Checks that a publishing task has the same messages after a restart as before the restart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from deferrable_ops.exceptions import InputError


def fingerprint(messages: Sequence[Any]) -> str:
    """Return a short digest of the messages. Equal messages have equal digests."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(repr(message).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()[:16]


def check_unchanged(stored: Mapping[str, Any], current: str) -> None:
    """Check that the messages are the same as in an earlier run of the trigger, which has published some of the
    messages.

    :param stored: the progress that the earlier run stored, with the fingerprint of its messages.
    :param current: the fingerprint of the current messages.
    :raises InputError: if the messages have changed, for example because a file was modified.
    """
    if stored.get("same", current) != current:
        raise InputError(
            f"the messages have changed since the first {stored['published']} messages were published, so the task "
            "cannot continue. Perhaps a file was overwritten; write each file under a temporary name, and rename the "
            "file when it is complete"
        )
