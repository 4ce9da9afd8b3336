"""Fixtures of the tests of the events triggers."""

from __future__ import annotations

import pytest
from unit.triggers.events.kafka_support import FakeKafka

from deferrable_ops.triggers.events import kafka_source, progress


@pytest.fixture
def telling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits show their progress at once, and not every ten seconds."""
    monkeypatch.setattr(progress, "_FIRST_AFTER", 0.0)
    monkeypatch.setattr(progress, "_EVERY", 0.05)


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    """Return the cluster that every wait for a Kafka event connects to."""
    kafka = FakeKafka()
    monkeypatch.setattr(kafka_source, "use_kafka", kafka.use)
    return kafka
