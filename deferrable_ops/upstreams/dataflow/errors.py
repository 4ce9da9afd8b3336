"""What an error of Dataflow's API means, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.exceptions import DataflowError, DataflowRefused, DataflowUnavailable

if TYPE_CHECKING:
    from google.api_core.exceptions import GoogleAPICallError

TRANSIENT: Final = frozenset(
    {
        "ABORTED",
        "CANCELLED",
        "DATA_LOSS",
        "DEADLINE_EXCEEDED",
        "INTERNAL",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "UNKNOWN",
    }
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call, in the words of its errors.

    :param purpose: continues "Dataflow refused to".
    :param permission: of IAM, that it needs.
    """

    purpose: str
    permission: str
    project_id: str
    region: str
    caller: str


@contextmanager
def errors_of(call: Call) -> Iterator[None]:
    """Turn an error of the client library into one of ours.

    :raises DataflowUnavailable: it may work later.
    :raises DataflowRefused: it will not.
    """
    from google.api_core.exceptions import GoogleAPICallError

    try:
        yield
    except GoogleAPICallError as error:
        raise _meaning(error, call) from error


def _meaning(error: GoogleAPICallError, call: Call) -> DataflowError:
    status = getattr(error.grpc_status_code, "name", "UNKNOWN")
    said = "; ".join([str(error.message or status), *_details(error)])
    where = f"project {call.project_id}, region {call.region}"
    if status in TRANSIENT:
        return DataflowUnavailable(f"Dataflow could not {call.purpose} now ({status}, {where}): {said}")
    return DataflowRefused(
        f"Dataflow refused to {call.purpose} ({status}, {where}): {said}{_fix(status, call)}", status
    )


def _fix(status: str, call: Call) -> str:
    if status == "PERMISSION_DENIED":
        workers = (
            "; to launch, it also needs roles/iam.serviceAccountUser on the service account of the job's workers"
            if call.permission == "dataflow.jobs.create"
            else ""
        )
        return (
            f". Grant {call.caller} the permission {call.permission} on project {call.project_id} "
            f"(roles/dataflow.developer has it){workers}"
        )
    if status == "UNAUTHENTICATED":
        return f". Check the credentials: {call.caller}"
    if status == "NOT_FOUND":
        return ". Check the project, the region and what is named here"
    return ""


def _details(error: GoogleAPICallError) -> list[str]:
    # Dataflow says only here which of a template's parameters is wrong.
    return [text for detail in error.details or () for text in _detail(detail)]


def _detail(detail: Any) -> list[str]:
    from google.cloud.dataflow_v1beta3 import InvalidTemplateParameters

    kind = type(detail).__name__
    if kind == "BadRequest":
        return [f"{violation.field}: {violation.description}" for violation in detail.field_violations]
    if kind == "Any" and detail.type_url.endswith("InvalidTemplateParameters"):
        violations = InvalidTemplateParameters.deserialize(detail.value).parameter_violations
        return [f"{violation.parameter}: {violation.description}" for violation in violations]
    return []
