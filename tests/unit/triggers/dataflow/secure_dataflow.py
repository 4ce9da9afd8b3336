"""A fake Dataflow that the library reaches as it reaches Google's: over TLS, with tokens of google-auth."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.api_core import grpc_helpers_async

from deferrable_ops.testing.dataflow import FakeDataflow
from deferrable_ops.testing.dataflow.fake import SETTING
from deferrable_ops.testing.dataflow.service import handlers
from deferrable_ops.testing.google import FakeGoogle


class RequiresToken(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without a valid token, as Google's APIs do."""

    def __init__(self, google: FakeGoogle) -> None:
        self._google = google

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        token = dict(details.invocation_metadata).get("authorization", "").removeprefix("Bearer ")
        if self._google.accepts(token):
            return await continuation(details)

        async def refuse(_request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "invalid authentication credentials")

        return grpc.unary_unary_rpc_method_handler(refuse)


@asynccontextmanager
async def serve(fake: FakeDataflow, google: FakeGoogle) -> AsyncIterator[tuple[int, bytes]]:
    """Serve a fake Dataflow over TLS on localhost. Yield the port, and the certificate to trust."""
    key, certificate = _certificate()
    server = grpc.aio.server(interceptors=[RequiresToken(google)])
    server.add_generic_rpc_handlers(tuple(handlers(fake)))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    yield port, certificate
    await server.stop(None)


@asynccontextmanager
async def behind_credentials(fake: FakeDataflow, google: FakeGoogle) -> AsyncIterator[None]:
    """Serve a fake Dataflow over TLS. In the block, the library connects to this server instead of Google's."""
    create_channel = grpc_helpers_async.create_channel
    environment = {name: value for name, value in os.environ.items() if name != SETTING}
    async with serve(fake, google) as (port, certificate):

        def redirected(_target: str, **arguments: Any) -> Any:
            tls = grpc.ssl_channel_credentials(certificate)
            return create_channel(f"localhost:{port}", ssl_credentials=tls, **arguments)

        with (
            patch.dict(os.environ, environment, clear=True),
            patch.object(grpc_helpers_async, "create_channel", redirected),
        ):
            yield


def _certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, certificate.public_bytes(pem)
