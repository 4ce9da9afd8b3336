"""Converts errors of Dataflow's API into exceptions of this library.

The message of each exception shows how to correct the error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deferrable_ops.error_table import ErrorKind, kind_of_code
from deferrable_ops.exceptions import DataflowError, DataflowRefused, DataflowUnavailable

if TYPE_CHECKING:
    from google.api_core.exceptions import GoogleAPICallError


@dataclass(frozen=True, slots=True)
class ApiCall:
    """The description of an API call, for error messages.

    :param purpose: the rest of a sentence that begins with "Dataflow refused to", such as "launch the job 'sales'".
    :param permission: the IAM permission that the call needs.
    :param caller: the description of the Google account, from
        :func:`~deferrable_ops.upstreams.dataflow.credentials.describe_account`.
    """

    purpose: str
    permission: str
    project_id: str
    region: str
    caller: str


@contextmanager
def translate_errors(call: ApiCall) -> Iterator[None]:
    """Convert the errors that the client library raises in the ``with`` block.

    :raises DataflowUnavailable: if the API call failed, but a retry may succeed.
    :raises DataflowRefused: if Dataflow refused the API call, and would also refuse a retry.
    """
    from google.api_core.exceptions import GoogleAPICallError

    try:
        yield
    except GoogleAPICallError as error:
        raise _translated(error, call) from error


def _translated(error: GoogleAPICallError, call: ApiCall) -> DataflowError:
    status = getattr(error.grpc_status_code, "name", "UNKNOWN")
    text = "; ".join([str(error.message or status), *_details(error)])
    where = f"project {call.project_id}, region {call.region}"
    if kind_of_code("google", status) is ErrorKind.TEMPORARY:
        return DataflowUnavailable(
            f"Dataflow cannot {call.purpose} at the moment ({status}, {where}): {text}", status
        )
    return DataflowRefused(
        f"Dataflow refused to {call.purpose} ({status}, {where}): {text}{_fix(status, call)}", status
    )


def _fix(status: str, call: ApiCall) -> str:
    if status == "PERMISSION_DENIED":
        workers = (
            "; to launch jobs, this account also needs roles/iam.serviceAccountUser on the service account of the "
            "job's workers"
            if call.permission == "dataflow.jobs.create"
            else ""
        )
        return (
            f". Grant {call.caller} the permission {call.permission} on project {call.project_id} "
            f"(roles/dataflow.developer has it){workers}"
        )
    if status == "UNAUTHENTICATED":
        return f". Check the credentials of {call.caller}"
    if status == "NOT_FOUND":
        return ". Check that the project, the region, and the job or the template exist"
    return ""


def _details(error: GoogleAPICallError) -> list[str]:
    # The invalid parameters of a template are named only in the details.
    return [one for detail in error.details or () for one in _detail(detail)]


def _detail(detail: Any) -> list[str]:
    from google.cloud.dataflow_v1beta3 import InvalidTemplateParameters

    kind = type(detail).__name__
    if kind == "BadRequest":
        return [f"{violation.field}: {violation.description}" for violation in detail.field_violations]
    if kind == "Any" and detail.type_url.endswith("InvalidTemplateParameters"):
        violations = InvalidTemplateParameters.deserialize(detail.value).parameter_violations
        return [f"{violation.parameter}: {violation.description}" for violation in violations]
    return []
