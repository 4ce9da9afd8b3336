"""Exceptions that the library raises.

DeferrableOpsError
├── ConfigurationError        a setting or a connection is missing or malformed: fix it
│   ├── MissingCredentials    the machine has no Google credentials, or its metadata server does not answer: fix it
│   └── DeploymentError       no task can use the inbox until the deployment is fixed; tasks keep waiting
│       └── NotOwner          the inbox belongs to another deployment of Airflow; tasks keep waiting
├── InputError                an operator's argument is wrong: fix the DAG            (a ValueError)
├── InboxError
│   ├── InboxUnavailable      the inbox's database is unavailable: retry
│   ├── UnknownWait           the inbox does not contain the wait, or has deleted it
│   └── UnknownChannel        the inbox does not contain the channel
├── AirflowUnavailable        Airflow did not answer a trigger's request: retry
├── LaunchRefused             an external system refused to launch the work: fix the request
├── TokenRefused              a callback token is malformed, forged or revoked
│   └── UnknownKey            the inbox has no key with the token's key id: compare inbox_url on all machines
├── DataflowError
│   ├── DataflowUnavailable   Dataflow is unavailable: retry
│   ├── DataflowRefused       Dataflow rejected the request permanently: fix the permission or the request
│   └── LaunchUncertain       it is unknown whether the job was created: look for the job before a second launch
├── KafkaError
│   ├── KafkaUnavailable      no broker is available: retry
│   └── KafkaRefused          the cluster rejected the request permanently: fix the credentials, topic or permission
├── SqsRefused                SQS rejected the request permanently: fix the credentials, queue URL or permission
├── MachineError
│   ├── MachineUnavailable    a machine is unavailable or timed out: retry
│   └── MachineRefused        a machine rejected the request permanently: fix the permission or the file
│       └── LoginRefused      a machine rejected the login or its host key is unknown: fix the login or the host key
└── SupervisordError
    ├── SupervisordUnavailable  supervisord is unavailable: retry
    └── SupervisordRefused      supervisord rejected the request permanently: fix the login or the request
"""

from __future__ import annotations


class DeferrableOpsError(Exception):
    """Base class of the library's exceptions."""


class ConfigurationError(DeferrableOpsError):
    """A setting is missing or malformed. The message shows which setting, and how to correct it."""


class DeploymentError(ConfigurationError):
    """The deployment is set up wrongly for every task: the inbox's URL, login or schema, or the Fernet key.

    A task waits until its deadline, and does not fail because of this error. While the error lasts, no external work (a
    job in another system) is launched or stopped.
    """


class NotOwner(DeploymentError):
    """The inbox belongs to another deployment of Airflow; the error message names both deployments and the fix."""


class MissingCredentials(ConfigurationError):
    """The machine has no Google credentials, or the metadata server that has them does not answer yet."""


class InputError(DeferrableOpsError, ValueError):
    """An operator's argument is invalid. The message shows which argument, and how to correct it."""


class InboxError(DeferrableOpsError):
    """Base class of errors of the inbox."""


class InboxUnavailable(InboxError):
    """The inbox's database is unavailable; every call to the inbox is safe to retry."""


class UnknownWait(InboxError):
    """The inbox does not contain the wait, or has deleted the wait after its retention time."""


class UnknownChannel(InboxError):
    """The inbox has no channel with the given name."""


class AirflowUnavailable(DeferrableOpsError):
    """Airflow did not answer a trigger's request, for example for a connection; the request may be repeated."""


class LaunchRefused(DeferrableOpsError):
    """An external system refused to launch the work, or did not accept the launch in time.

    :param retry_can_help: whether the system may accept the same launch later, without a change by a user.
    """

    def __init__(self, message: str, *, retry_can_help: bool = False) -> None:
        super().__init__(message)
        self.retry_can_help = retry_can_help


class TokenRefused(DeferrableOpsError):
    """A callback token is malformed, forged, or signed with a revoked key."""


class UnknownKey(TokenRefused):
    """The inbox has no key with the id in a callback token.

    The token is forged, or was made by an Airflow that uses another inbox.

    :param wait_id: the wait id in the callback token. The wait id is not verified, and it is not a secret.
    :param key_id: the key id in the callback token. The key id is not verified, and it is not a secret.
    """

    def __init__(self, wait_id: str, key_id: str) -> None:
        super().__init__(
            "this endpoint's inbox does not have the key that signed the token; "
            "check that the endpoint and the triggerer have the same [deferrable_ops] inbox_url"
        )
        self.wait_id = wait_id
        self.key_id = key_id


class DataflowError(DeferrableOpsError):
    """Base class of errors of Dataflow."""


class DataflowUnavailable(DataflowError):
    """Dataflow is unavailable, or throttles requests; the request may be retried.

    :param code: the gRPC status, such as ``UNAVAILABLE``; "" if no request was sent.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class DataflowRefused(DataflowError):
    """Dataflow rejected the request permanently. The message shows why, and how to correct the error.

    :param code: the gRPC status, such as ``PERMISSION_DENIED``; "" if the credentials were rejected.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class DataflowLaunchRefused(LaunchRefused, DataflowRefused):
    """Dataflow rejected a launch permanently; no job was created.

    :param code: the gRPC status, as in :exc:`DataflowRefused`.
    """

    def __init__(self, message: str, code: str = "") -> None:
        LaunchRefused.__init__(self, message)
        self.code = code


class LaunchUncertain(DataflowError):
    """It is unknown whether the Dataflow job was created.

    Before a second launch, look for a job with the same name.

    :param already_exists: whether Dataflow responded that a job with this name is already active.
    :param code: the gRPC status of the response; "" if there was no response.
    """

    def __init__(self, message: str, already_exists: bool = False, code: str = "") -> None:
        super().__init__(message)
        self.already_exists = already_exists
        self.code = code


class KafkaError(DeferrableOpsError):
    """Base class of errors of Kafka."""


class KafkaUnavailable(KafkaError):
    """No broker is available; the request may be retried."""


class KafkaRefused(KafkaError):
    """The Kafka cluster rejected the request permanently. The message shows why, and how to correct the error."""


class SqsRefused(DeferrableOpsError):
    """SQS rejected the request permanently. The message shows why, and how to correct the error."""


class MachineError(DeferrableOpsError):
    """Base class of errors of the machine on which a supervisord runs."""


class MachineUnavailable(MachineError):
    """The machine is unavailable or timed out. The operation may have completed, and can be retried."""


class MachineRefused(MachineError):
    """The machine rejected the request permanently. The message shows why, and how to correct the error."""


class LoginRefused(MachineRefused):
    """A machine rejected the login, or its host key is unknown. The message shows why, and how to correct the error."""


class SupervisordError(DeferrableOpsError):
    """Base class of errors of supervisord."""


class SupervisordUnavailable(SupervisordError):
    """supervisord is unavailable; the operation may have completed."""


class SupervisordRefused(SupervisordError):
    """supervisord rejected the request permanently.

    :param code: supervisord's fault code, such as 10 (BAD_NAME) or 60 (ALREADY_STARTED); 0 if the login was rejected.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code
