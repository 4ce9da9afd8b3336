"""Kafka for tests: a mock cluster that can have faults, and what is stored of its records."""

from real_kafka.mock import MockKafka
from real_kafka.stored import Stored

__all__ = ["MockKafka", "Stored"]
