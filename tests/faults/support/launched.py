"""A task that launches work at a service which does not deduplicate, and what must be true of it at the end."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from real_airflow import OutsideService, RealAirflow, Task, wait_until


@dataclass(frozen=True)
class Launched:
    """One run of the DAG `webhook_cancel`, with a service of its own."""

    service: OutsideService
    task: Task

    @classmethod
    def at(cls, airflow: RealAirflow, service: OutsideService) -> Launched:
        """Trigger the run."""
        return cls(service, airflow.trigger("webhook_cancel", {"service": service.url}).task("job"))

    def wait_until_refused(self) -> None:
        """Wait until the launch failed to connect, and is to be tried again."""
        wait_until(lambda: "sending the request again in" in self.task.log(), f"{self.task} to try again")

    def wait_until_connecting(self) -> None:
        """Wait until the kernel tries to connect, which nobody answers."""
        wait_until(self._is_connecting, f"{self.task} to connect", every=0.02)

    def wait_until_recorded(self) -> None:
        """Wait until the answer to the launch is recorded."""
        wait_until(
            lambda: "Launched the work: " in self.task.log(), f"the launch of {self.task} to be recorded"
        )

    def end(self, requests: int) -> None:
        """Call back, and check that the task ended once, by this callback, without a worker, and nothing was cancelled.

        :param requests: how many launching requests the service must have seen.
        """
        received = self.service.wait_for_requests("/job", requests)
        payload = {"launched at": self.service.port}
        assert self.service.call_back(received[-1], payload).status_code == 200

        self.task.run.wait_for("success")
        assert self.task.xcom() == payload
        self.assert_undisturbed(requests)

    def assert_undisturbed(self, requests: int) -> None:
        """Check what was sent, all under one key, that nothing was cancelled, and who took part."""
        received = self.service.requests()
        assert [(request.method, request.path) for request in received] == [("POST", "/job")] * requests
        assert len({request.idempotency_key for request in received}) == 1
        assert len({request.callback_url for request in received}) == 1
        assert received[0].idempotency_key
        assert [attempt.number for attempt in self.task.tries()] == [1]
        assert self.task.run.worker_processes() == 0

    def _is_connecting(self) -> bool:
        return any(
            connection.status == psutil.CONN_SYN_SENT
            and connection.raddr.port == self.service.port
            and connection.pid != os.getpid()
            for connection in psutil.net_connections("tcp4")
        )
