"""Leads a process whose PYTHONPATH contains this folder to fake servers instead of Google's."""

import os

if "DATAFLOW_TLS" in os.environ:
    import google.auth.iam
    from google.api_core import grpc_helpers_async

    create_channel = grpc_helpers_async.create_channel

    def redirected(_target, **arguments):
        """Open a channel to the fake Dataflow."""
        return create_channel(os.environ["DATAFLOW_TLS"], **arguments)

    grpc_helpers_async.create_channel = redirected
    google.auth.iam._IAM_ENDPOINT = os.environ["FAKE_IAM_ENDPOINT"]
