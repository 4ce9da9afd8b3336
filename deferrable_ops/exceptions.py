"""Every error that the library raises on purpose.

DeferrableOpsError
├── ConfigurationError        a setting is missing or malformed: fix the deployment
├── InputError                an operator's argument is wrong: fix the DAG            (a ValueError)
├── InboxError
│   ├── InboxUnavailable      the database does not answer now: try again
│   └── UnknownWait           this inbox has never seen the wait, or has pruned it
└── TokenRefused              a callback token is malformed, forged or revoked
"""

from __future__ import annotations


class DeferrableOpsError(Exception):
    """Base of every error that the library raises on purpose."""


class ConfigurationError(DeferrableOpsError):
    """A setting is missing or malformed; the message names the setting and the fix."""


class InputError(DeferrableOpsError, ValueError):
    """An operator's argument is wrong; the message names the argument and the fix."""


class InboxError(DeferrableOpsError):
    """Base of what can go wrong with the inbox."""


class InboxUnavailable(InboxError):
    """The inbox does not answer now; what was asked is safe to ask again."""


class UnknownWait(InboxError):
    """This inbox has never seen the wait, or has pruned it after its retention."""


class TokenRefused(DeferrableOpsError):
    """A callback token is malformed, forged, or signed with a key that was revoked."""
