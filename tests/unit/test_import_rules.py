"""The check of the import rules finds what breaks one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "import_rules.py"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("operators/webhook.py", "from deferrable_ops.triggers.webhook.trigger import WebhookTrigger"),
        ("operators/webhook.py", "from deferrable_ops.operators.base import TriggererOperator"),
        ("operators/webhook.py", "from deferrable_ops.operators.webhook.mixin import WebhookOperatorMixin"),
        ("operators/webhook.py", "from deferrable_ops.inbox import Inbox"),
        ("operators/supervisor.py", "from deferrable_ops.operators.high_availability import Leader"),
        ("triggers/webhook.py", "from ..inbox import waits"),
        ("endpoint/app.py", "from deferrable_ops.settings import settings"),
        ("upstreams/sqs.py", "from deferrable_ops.inbox import Inbox"),
        ("upstreams/kafka.py", "from deferrable_ops.events.event import kafka_event"),
        ("upstreams/kafka.py", "def connect():\n    import aiokafka"),
        ("upstreams/kafka.py", "if TYPE_CHECKING:\n    import aiokafka"),
        ("cli.py", "from deferrable_ops.endpoint.app import app"),
        ("testing/dataflow/fake.py", "import grpc"),
    ],
)
def test_allowed_import_passes(tmp_path: Path, path: str, source: str) -> None:
    assert check(tmp_path, path, source) == (0, "import rules: ok\n")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("operators/webhook.py", "from deferrable_ops.upstreams import shared"),
        ("operators/webhook.py", "from deferrable_ops.operators.events import EventOperator"),
        ("triggers/webhook.py", "from deferrable_ops.operators.webhook import WebhookOperator"),
        ("triggers/webhook.py", "def later():\n    from deferrable_ops import cli"),
        ("endpoint/app.py", "import deferrable_ops.triggers.webhook.trigger"),
        ("inbox/waits.py", "from ..events import matching"),
        ("upstreams/kafka.py", "from deferrable_ops.inbox import Inbox"),
        ("settings.py", "from deferrable_ops.inbox import Inbox"),
        ("upstreams/kafka.py", "import aiokafka"),
        ("testing/service.py", "import grpc"),
        ("triggers/events.py", "def connect():\n    from aiokafka import AIOKafkaConsumer"),
    ],
)
def test_forbidden_import_is_named_with_its_place(tmp_path: Path, path: str, source: str) -> None:
    code, printed = check(tmp_path, path, source)

    assert code == 1
    assert f"deferrable_ops/{path}:{len(source.splitlines())}: imports" in printed


def check(folder: Path, path: str, source: str) -> tuple[int, str]:
    """Run the script on a package that has only this one file."""
    file = folder / "deferrable_ops" / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    (folder / "scripts").mkdir()
    script = Path(folder / "scripts" / SCRIPT.name)
    script.write_text(SCRIPT.read_text())
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout
