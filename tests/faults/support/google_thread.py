"""A fake Dataflow over TLS and the servers that issue its tokens, in a thread, for a triggerer in another process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unit.triggers.dataflow.secure_dataflow import serve

from deferrable_ops.testing.dataflow import FakeDataflow
from deferrable_ops.testing.google import FakeGoogle

FOLDER = Path(__file__).parent / "google_servers"


class GoogleThread:
    """The servers, and the environment of a triggerer that uses them."""

    def __init__(self, folder: Path) -> None:
        self.dataflow = FakeDataflow()
        self.google = FakeGoogle()
        # So short that each API call requests a new token.
        self.google.token_seconds = 60
        self.folder = folder
        self._target = ""

    def environment(self, source: str) -> dict[str, str]:
        """Return the environment of a triggerer whose credentials come from a `key` or from a `metadata` server."""
        key = str(self.folder / "key.json") if source == "key" else ""
        return {
            "AIRFLOW__DEFERRABLE_OPS__DATAFLOW_EMULATOR_HOST": "",
            "PYTHONPATH": str(FOLDER),
            "AIRFLOW__DEFERRABLE_OPS__DATAFLOW_API_ENDPOINT": self._target,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(self.folder / "certificate.pem"),
            "FAKE_IAM_ENDPOINT": f"http://{self.google.host}/v1/projects/-/serviceAccounts/{{}}:generateAccessToken",
            "NO_PROXY": "127.0.0.1,localhost",
            "CLOUDSDK_CONFIG": str(self.folder),
            "GCE_METADATA_HOST": self.google.host,
            "GCE_METADATA_IP": self.google.host,
            "GOOGLE_APPLICATION_CREDENTIALS": key,
        }

    @contextmanager
    def running(self) -> Iterator[GoogleThread]:
        """Run the servers within the block."""
        ready, stop = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        async def run() -> None:
            async with serve(self.dataflow, self.google) as (port, certificate):
                (self.folder / "certificate.pem").write_bytes(certificate)
                self._target = f"localhost:{port}"
                ready.set()
                await stop.wait()

        self.google.start()
        self.google.write_key(self.folder / "key.json")
        thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
        thread.start()
        try:
            assert ready.wait(30), "the fake Dataflow is not ready"
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            self.google.stop()
