"""Helpers for testing DAGs: tasks that run on an in-memory inbox, and a fake outside service on loopback."""

from deferrable_ops.testing.inbox import memory_inbox
from deferrable_ops.testing.service import OutsideService, ReceivedRequest, outside_service
from deferrable_ops.testing.waiting import TaskUnderTest, running

__all__ = [
    "OutsideService",
    "ReceivedRequest",
    "TaskUnderTest",
    "memory_inbox",
    "outside_service",
    "running",
]
