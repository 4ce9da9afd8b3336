"""The inbox: the database tables that store every wait and every received event."""

import deferrable_ops.airflow_version  # noqa: F401 - it refuses an Airflow that is too old
from deferrable_ops.inbox.inbox import NO_RETRY_TIMEOUT, Inbox, use_inbox
from deferrable_ops.inbox.waits.wait import Attempt, NewWait, Wait, WaitState

__all__ = ["NO_RETRY_TIMEOUT", "Attempt", "Inbox", "NewWait", "Wait", "WaitState", "use_inbox"]
