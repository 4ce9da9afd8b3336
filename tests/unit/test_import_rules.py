"""The check of the import rules finds what breaks one."""

from __future__ import annotations

import io
import runpy
from contextlib import redirect_stdout
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "import_rules.py"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("operators/webhook/operators.py", "from deferrable_ops.triggers.webhook import WebhookTrigger"),
        ("operators/webhook/operators.py", "from deferrable_ops.operators.base import TriggererOperator"),
        ("operators/webhook/decorator.py", "from deferrable_ops.operators.webhook.mixin import Mixin"),
        ("operators/webhook/operators.py", "from deferrable_ops.inbox import Inbox"),
        ("operators/supervisor/steps.py", "from deferrable_ops.operators.high_availability import Action"),
        ("triggers/events/kafka_source.py", "from deferrable_ops.upstreams.kafka.consumers import use_kafka"),
        ("triggers/webhook/trigger.py", "from deferrable_ops.triggers.lifecycle.delivery import event_for"),
        ("triggers/webhook/launch.py", "from deferrable_ops.upstreams.http import use_session"),
        ("triggers/webhook/trigger.py", "from ...inbox import waits"),
        (
            "triggers/webhook/__init__.py",
            "from deferrable_ops.triggers.webhook.trigger import WebhookTrigger",
        ),
        ("endpoint/app.py", "from deferrable_ops.settings import settings"),
        ("upstreams/sqs/queues.py", "from deferrable_ops.upstreams.aws.session import session"),
        ("upstreams/kafka/consumers.py", "from deferrable_ops.events.event import kafka_event"),
        ("upstreams/kafka/client.py", "def connect():\n    import aiokafka"),
        ("upstreams/kafka/client.py", "if TYPE_CHECKING:\n    import aiokafka"),
        ("cli/main.py", "from deferrable_ops.endpoint.app import app"),
        ("testing/dataflow/fake.py", "import grpc"),
        ("testing/service.py", "from aiohttp import web"),
    ],
)
def test_allowed_import_passes(tmp_path: Path, path: str, source: str) -> None:
    assert check(tmp_path, {path: source}) == (0, "import rules: ok\n")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("operators/webhook/operators.py", "from deferrable_ops.upstreams import http"),
        ("operators/webhook/operators.py", "from deferrable_ops.operators.events import EventSensor"),
        ("operators/webhook/operators.py", "from deferrable_ops.triggers.events import EventsTrigger"),
        ("operators/dataflow.py", "from deferrable_ops.operators.webhook import WebhookOperator"),
        ("operators/webhook/decorator.py", "from deferrable_ops.operators.webhook import Mixin"),
        ("triggers/high_availability/triggers.py", "from deferrable_ops.triggers.supervisor import Check"),
        ("triggers/webhook/launch.py", "from deferrable_ops.upstreams.kafka.client import Client"),
        ("triggers/lifecycle/delivery.py", "from deferrable_ops.triggers.webhook import WebhookTrigger"),
        ("triggers/webhook/trigger.py", "from deferrable_ops.operators.webhook import WebhookOperator"),
        ("triggers/webhook/trigger.py", "def later():\n    from deferrable_ops import cli"),
        ("endpoint/app.py", "import deferrable_ops.triggers.webhook.trigger"),
        ("inbox/waits/waits.py", "from ...events import matching"),
        ("inbox/database/engines.py", "from deferrable_ops.inbox.waits.keys import Keys"),
        ("upstreams/kafka/client.py", "from deferrable_ops.inbox import Inbox"),
        ("upstreams/kafka/client.py", "from deferrable_ops.upstreams.sqs.queues import use_sqs"),
        ("settings.py", "from deferrable_ops.inbox import Inbox"),
        ("upstreams/kafka/client.py", "import aiokafka"),
        ("upstreams/http.py", "import aiohttp"),
        ("testing/service.py", "import grpc"),
        ("triggers/events/kafka_source.py", "def connect():\n    from aiokafka import AIOKafkaConsumer"),
    ],
)
def test_forbidden_import_is_named_with_its_place(tmp_path: Path, path: str, source: str) -> None:
    code, printed = check(tmp_path, {path: source})

    assert code == 1
    assert f"deferrable_ops/{path}:{len(source.splitlines())}: imports" in printed


@pytest.mark.parametrize(
    "importing",
    [
        "from deferrable_ops.inbox.waits.b import b",
        "from deferrable_ops.inbox.waits import b",
        "def later():\n    import deferrable_ops.inbox.waits.b",
        "if TYPE_CHECKING:\n    from .b import b",
    ],
)
def test_circle_is_found_lazy_and_for_types_too(tmp_path: Path, importing: str) -> None:
    files = {"inbox/waits/a.py": importing, "inbox/waits/b.py": "from deferrable_ops.inbox.waits.a import a"}

    code, printed = check(tmp_path, files)

    assert code == 1
    assert "import circle: deferrable_ops.inbox.waits.a -> deferrable_ops.inbox.waits.b -> " in printed


def test_folders_init_that_does_more_than_re_export_is_refused(tmp_path: Path) -> None:
    code, printed = check(tmp_path, {"triggers/webhook/__init__.py": "def send():\n    return 1"})

    assert code == 1
    assert "deferrable_ops/triggers/webhook/__init__.py:1: a folder's __init__.py only re-exports" in printed


def check(folder: Path, files: dict[str, str]) -> tuple[int, str]:
    """Run the script on a package that has only these files."""
    for path, source in files.items():
        file = folder / "deferrable_ops" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    (folder / "scripts").mkdir()
    script = Path(folder / "scripts" / SCRIPT.name)
    script.write_text(SCRIPT.read_text())
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(script), run_name="__main__")
    return int(exit_.value.code or 0), printed.getvalue()
