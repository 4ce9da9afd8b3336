"""Stores encrypted triggers in the inbox, so that any process can cancel their external work later."""

from __future__ import annotations

import json
import pkgutil
from dataclasses import asdict
from typing import Any, Final, Protocol

from airflow.triggers.base import BaseTrigger

from deferrable_ops import settings
from deferrable_ops.exceptions import DeferrableOpsError, InboxError
from deferrable_ops.inbox import Attempt, Inbox, Wait
from deferrable_ops.inbox.database.encryption import airflow_fernet

_features: set[str] = set()
# Older releases ignore this argument of the trigger.
_TEAM: Final = "stored_by_team"


class OtherTeam(DeferrableOpsError):
    """Raised if a process of another team has stored the trigger. Only triggerers of that team can use the trigger."""


class CancellableTrigger(Protocol):
    """A trigger from the inbox, which can cancel the external work of its task."""

    inbox: Inbox

    async def cancel(self, wait: Wait) -> None:
        """Cancel the external work of a task's wait. This method must be idempotent."""


def register_feature(feature: str) -> None:
    """Register the name of a feature, so that :func:`decrypt` can return triggers of this feature."""
    _features.add(feature)


def encrypt(trigger: BaseTrigger, attempt: Attempt) -> bytes:
    """Return a trigger's classpath and rendered kwargs, encrypted with ``[core] fernet_key``.

    :raises ConfigurationError: if the ``fernet_key`` is missing or malformed.
    """
    classpath, kwargs = trigger.serialize()
    kwargs["attempt"] = asdict(attempt)
    if (team := settings.team()) is not None:
        kwargs[_TEAM] = team
    encrypted: bytes = _fernet().encrypt(json.dumps([classpath, kwargs]).encode())
    return encrypted


def decrypt(encrypted: bytes) -> CancellableTrigger:
    """Return the trigger that was passed to :func:`encrypt`.

    :raises OtherTeam: if a process of another team stored the trigger.
    :raises ConfigurationError: if the ``fernet_key`` is missing or malformed.
    :raises InboxError: if the stored class is not a trigger of a registered feature.
    """
    classpath, kwargs = json.loads(_fernet().decrypt(encrypted))
    team = kwargs.pop(_TEAM, None)
    if team != settings.team():
        raise OtherTeam(f"only triggerers of the team {team} can read the connections that the launch used")
    trigger_class: Any = pkgutil.resolve_name(classpath)
    is_trigger = isinstance(trigger_class, type) and issubclass(trigger_class, BaseTrigger)
    if not is_trigger or getattr(trigger_class, "feature", None) not in _features:
        raise InboxError(
            f"the stored class {classpath} is not a trigger of this library; check who can write to the inbox"
        )
    trigger: CancellableTrigger = trigger_class(**kwargs)
    return trigger


def _fernet() -> Any:
    return airflow_fernet("the triggers that cancel external work are")
