"""Fixtures of the tests of the events triggers."""

from __future__ import annotations

import pytest
from unit.triggers.events.kafka_support import FakeKafka

from deferrable_ops.triggers.events import kafka_source
from deferrable_ops.triggers.events.progress import ProgressReporter


@pytest.fixture
def telling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits show their progress at once, and not every ten seconds."""
    monkeypatch.setattr(ProgressReporter, "first_report_after", 0.0)
    monkeypatch.setattr(ProgressReporter, "report_every", 0.05)


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    """Return the cluster that every wait for a Kafka event connects to."""
    kafka = FakeKafka()
    monkeypatch.setattr(kafka_source, "use_kafka", kafka.use)
    return kafka
