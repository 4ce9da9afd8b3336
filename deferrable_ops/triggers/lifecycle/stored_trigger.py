"""A trigger kept in the inbox until its outside work may have to be stopped, encrypted as Airflow encrypts its own."""

from __future__ import annotations

import json
import pkgutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from deferrable_ops.exceptions import InboxError
from deferrable_ops.inbox import Attempt
from deferrable_ops.inbox.database.encryption import airflow_fernet

if TYPE_CHECKING:
    from deferrable_ops.triggers.base import TaskTrigger


def seal(trigger: TaskTrigger, attempt: Attempt) -> bytes:
    """Return a trigger with its rendered kwargs, encrypted with ``[core] fernet_key``.

    :raises ConfigurationError: there is no such key.
    """
    classpath, kwargs = trigger.serialize()
    kwargs["attempt"] = asdict(attempt)
    encrypted: bytes = _fernet().encrypt(json.dumps([classpath, kwargs]).encode())
    return encrypted


def unseal(sealed: bytes) -> TaskTrigger:
    """Return the trigger that was sealed.

    :raises ConfigurationError: there is no key to decrypt it.
    :raises InboxError: what the inbox holds is not a trigger of this library.
    """
    from deferrable_ops.triggers.base import TaskTrigger

    classpath, kwargs = json.loads(_fernet().decrypt(sealed))
    trigger_class: Any = pkgutil.resolve_name(classpath)
    if not (isinstance(trigger_class, type) and issubclass(trigger_class, TaskTrigger)):
        raise InboxError(f"{classpath} is not a trigger of this library")
    return trigger_class(**kwargs)


def _fernet() -> Any:
    return airflow_fernet("what stops a task's outside work is")
