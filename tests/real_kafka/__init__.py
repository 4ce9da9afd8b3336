"""Kafka for tests: a mock cluster that can have faults, a real one, and what reading them stores."""

from real_kafka.mock import MockKafka
from real_kafka.server import KafkaMissing, RealKafka
from real_kafka.stored import RecordingListener, Stored

__all__ = ["KafkaMissing", "MockKafka", "RealKafka", "RecordingListener", "Stored"]
