"""Opens aiokafka consumers. They wait longer after each failure, and report the reason if a cluster refuses them.

In the package ``kafka``, only this module, ``backoff_client`` and ``transactional_producer`` use private attributes of
aiokafka.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from deferrable_ops.backoff import Backoff
from deferrable_ops.error_table import ErrorKind, class_names, kind_of_code
from deferrable_ops.exceptions import ConfigurationError, KafkaRefused, KafkaUnavailable
from deferrable_ops.outages import kafka_source
from deferrable_ops.upstreams.kafka.backoff_client import backoff_client
from deferrable_ops.upstreams.kafka.connection import ClusterSettings
from deferrable_ops.upstreams.kafka.oauth import token_provider

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer

_RETRY_SECONDS = 0.2
_REQUEST_SECONDS = 20.0
# fetch.max.bytes: the memory that each consumer uses for each broker. A single record may be larger.
_FETCH_BYTES = 8 * 1_048_576
# fetch.max.wait.ms: how long a broker may wait for records before it answers a fetch. A seek in another partition of
# the same broker may be delayed by this time.
_FETCH_WAIT_MS = 250
# A refusal is permanent only after this many attempts: a broker that has just started may not have loaded its users
# yet.
_REFUSAL_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class ConsumerTimings:
    """Intervals and timeouts, in seconds, of the consumers of a Kafka cluster.

    :param metadata_interval: time between two requests for the metadata of the topics. After at most this time, the
        client knows of a new partition.
    :param discovery_interval: time between two searches for new partitions in the metadata that the client already has.
        Such a search sends no request to Kafka.
    :param missing_topic_timeout: if no broker has metadata of a topic for this time, the topic is reported as missing.
    :param switch_interval: how long the catch-up consumer reads from one offset before it switches to the subscriptions
        at another offset.
    """

    metadata_interval: float = 15.0
    discovery_interval: float = 5.0
    missing_topic_timeout: float = 15.0
    switch_interval: float = 1.0


DEFAULT_TIMINGS: Final = ConsumerTimings()


def import_aiokafka(mechanism: str = "") -> None:
    """Import aiokafka. Call this function in a thread, because the first import takes long and blocks.

    :param mechanism: the SASL mechanism of the connection; "" if the connection does not use SASL. For the mechanism
        GSSAPI, the library ``gssapi`` is also imported.
    :raises ConfigurationError: if deferrable-ops was installed without the extra ``kafka``.
    """
    try:
        # Import the compression library here, too. Without it, aiokafka fails only when a compressed batch arrives.
        for name in ("aiokafka", "aiokafka.client", "aiokafka.conn", "aiokafka.errors", "cramjam"):
            import_module(name)
        if mechanism == "GSSAPI":
            import_module("gssapi")
        logging.getLogger("aiokafka.conn").addFilter(_holds_no_credentials)
    except ImportError as missing:
        raise ConfigurationError(
            f"Kafka needs a client library that is not installed ({missing}); install it: "
            'pip install "airflow-deferrable-ops[kafka]"' + (" gssapi" if mechanism == "GSSAPI" else "")
        ) from missing


class Cluster:
    """Opens consumers of one Kafka cluster. Use this class only in the thread and on the event loop in which the
    consumers run.

    :param tls: the TLS context for connections to the brokers. If `tls` is None, connections are not encrypted.
    :param timings: the intervals and timeouts of the consumers of this cluster.
    :ivar topics: the names of the topics whose metadata (partitions and leaders) the consumers must keep up to date.
    :ivar refused: the error from a broker that has refused a connection permanently; None if no broker has done so.
    :ivar connection: the arguments that aiokafka needs for a connection to a broker.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        tls: ssl.SSLContext | None,
        *,
        timings: ConsumerTimings = DEFAULT_TIMINGS,
    ) -> None:
        self.settings = settings
        self.timings = timings
        self.topics: set[str] = set()
        self.refused: KafkaRefused | None = None
        self.connection = _connection_arguments(settings, tls)

    async def open_consumer(self, purpose: str) -> AIOKafkaConsumer:
        """Open a consumer that belongs to no consumer group. The consumer commits no offsets to Kafka.

        :param purpose: a word that becomes a part of the consumer's client id. Brokers write the client id to their
            logs.
        :raises KafkaRefused: if the cluster refuses the credentials or the client's certificate, or if the cluster's
            certificate is not trusted.
        :raises KafkaUnavailable: if no connection to any broker is possible now.
        """
        import aiokafka
        from aiokafka.errors import KafkaError

        client_id = f"{self.settings.client_id}-{purpose}"
        consumer = aiokafka.AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            # The caller seeks. A missing offset must raise an error, not reset the position silently.
            auto_offset_reset="none",
            isolation_level=self.settings.isolation,
            fetch_max_bytes=_FETCH_BYTES,
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            max_partition_fetch_bytes=self.settings.partition_bytes,
            client_rack=self.settings.rack,
            request_timeout_ms=int(_REQUEST_SECONDS * 1_000),
            client_id=client_id,
        )
        consumer._client = backoff_client(
            lambda: self.topics,
            self.broker_refusal,
            self._note_refusal,
            kafka_source(self.settings.conn_id),
            bootstrap_servers=self.settings.servers,
            request_timeout_ms=int(_REQUEST_SECONDS * 1_000),
            metadata_max_age_ms=int(self.timings.metadata_interval * 1_000),
            retry_backoff_ms=int(_RETRY_SECONDS * 1_000),
            **{**self.connection, "client_id": client_id},
        )
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            await consumer.stop()
            refused = await self.find_refusal()
            if refused is not None:
                raise refused from None
            raise KafkaUnavailable(
                f"no broker of the connection {self.settings.conn_id!r} ({self.settings.servers}) can be reached now: "
                f"{self.settings.without_secrets(error)}"
            ) from None
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def find_refusal(self) -> KafkaRefused | None:
        """Connect to the bootstrap servers one after the other.

        If all bootstrap servers refuse the connection permanently, return the error of the first one; otherwise return
        None.
        """
        from aiokafka.conn import collect_hosts

        refused = None
        for host, port, _ in collect_hosts(self.settings.servers, randomize=False):
            error = await self.broker_refusal(host, port)
            if error is None:
                return None
            refused = refused or error
        return refused

    async def broker_refusal(self, host: str, port: int) -> KafkaRefused | None:
        """Connect to a broker. If the broker refuses the connection permanently, return the error; otherwise return
        None.
        """
        from aiokafka.conn import create_conn
        from aiokafka.errors import KafkaError

        backoff = Backoff(first_pause=2 * _RETRY_SECONDS)
        for _ in range(_REFUSAL_ATTEMPTS):
            await backoff.wait()
            try:
                connection = await create_conn(
                    host, port, request_timeout_ms=int(_REQUEST_SECONDS * 1_000), **self.connection
                )
            except (KafkaError, OSError, TimeoutError) as error:
                if not _is_refusal(error):
                    return None
                last = error
                backoff.failed()
            else:
                connection.close()
                return None
        return KafkaRefused(self._describe_refusal(host, port, last))

    def _note_refusal(self, refused: KafkaRefused) -> None:
        self.refused = refused

    def _describe_refusal(self, host: str, port: int, error: Exception) -> str:
        detail = self.settings.without_secrets(error)
        where = f"{host}:{port} of the connection {self.settings.conn_id!r}"
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {where} is not trusted: {detail}; set ssl.ca.location in the connection's extra "
                "to a file with the certificate of the authority that signed it"
            )
        if isinstance(error, ssl.SSLError):
            return (
                f"no TLS connection to {where} is possible: {detail}; check security.protocol, and check the client "
                "certificate if the broker requires one"
            )
        return (
            f"{where} refuses {self.settings.username or 'this client'} "
            f"({self.settings.mechanism or self.settings.protocol}): {detail}; check sasl.mechanism, sasl.username "
            "and sasl.password in the connection's extra"
        )


async def partitions_of(
    consumer: AIOKafkaConsumer, settings: ClusterSettings, topic: str, *, missing_topic_timeout: float
) -> set[int]:
    """Return the partition numbers of a topic. Wait until a broker has returned the metadata of the topic.

    :param missing_topic_timeout: if the brokers return no metadata of the topic for this number of seconds, the topic
        is treated as missing.
    :raises KafkaRefused: if the topic does not exist, or if the Kafka user has no permission to describe the topic.
    """
    client: Any = consumer._client
    missing_since, backoff = None, Backoff()
    await client.add_topic(topic)
    while True:
        found = consumer.partitions_for_topic(topic)
        if found:
            return set(found)
        if topic in client.cluster.unauthorized_topics:
            raise topic_read_refusal(settings, topic)
        has_answered = await client.force_metadata_update()
        # Some brokers learn of a new topic later than others, so an answer without the topic is not final.
        missing_since = (missing_since or time.monotonic()) if has_answered else None
        if missing_since is not None and time.monotonic() - missing_since > missing_topic_timeout:
            raise KafkaRefused(
                f"there is no topic {topic!r} in the cluster of the connection {settings.conn_id!r}; check its name, "
                "or create it first"
            )
        await asyncio.sleep(backoff.failed())


def topic_read_refusal(settings: ClusterSettings, topic: str) -> KafkaRefused:
    """Return the error to raise if the Kafka user has no permission to read a topic."""
    return KafkaRefused(
        f"the cluster of the connection {settings.conn_id!r} does not let {settings.username or 'this client'} "
        f"read the topic {topic!r}; grant READ and DESCRIBE on it"
    )


def is_broken(consumer: AIOKafkaConsumer) -> bool:
    """Return whether the asyncio task in which aiokafka fetches records has ended. After this task has ended, the
    consumer returns no more records.
    """
    fetcher: Any = consumer._fetcher
    return bool(fetcher.error_future.done())


def _connection_arguments(settings: ClusterSettings, tls: ssl.SSLContext | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "client_id": settings.client_id,
        "security_protocol": settings.protocol,
        "ssl_context": tls,
    }
    if settings.protocol.startswith("SASL"):
        arguments |= {
            "sasl_mechanism": settings.mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password,
            "sasl_kerberos_service_name": settings.kerberos_service,
            "sasl_oauth_token_provider": token_provider(settings.oauth) if settings.oauth else None,
        }
    return arguments


def _holds_no_credentials(record: logging.LogRecord) -> bool:
    """Return whether a log record contains no credentials. At the level DEBUG, aiokafka logs authentication requests,
    which contain passwords.
    """
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not any(type(argument).__name__.startswith("Sasl") for argument in arguments)


def _is_refusal(error: Exception) -> bool:
    # An error that is not in the table is an outage.
    return kind_of_code("kafka", *class_names(error), default=ErrorKind.TEMPORARY) is ErrorKind.TASK
