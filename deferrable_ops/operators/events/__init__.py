"""Operators that wait for events, and an operator that publishes them."""

from deferrable_ops.operators.events.publish import PublishEventOperator
from deferrable_ops.operators.events.sensors import EventGate, EventSensor, MultiEventSensor, event_gate

__all__ = ["EventGate", "EventSensor", "MultiEventSensor", "PublishEventOperator", "event_gate"]
