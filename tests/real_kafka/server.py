"""A real Apache Kafka in KRaft mode, one broker, on the JDK that this machine has."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import ipaddress
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from real_airflow.cache import cache_folder
from real_airflow.ports import free_port

T = TypeVar("T")

_POM = Path(__file__).with_name("pom.xml")
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_FETCH_SECONDS = 240
_JAVA = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8")


class KafkaMissing(Exception):
    """No Kafka can be started on this machine; the message says why."""


class RealKafka:
    """A broker, its own controller, with its data in a folder that is removed at the end.

    The user `alice` may log in with the password `wonderland`.

    :ivar servers: where it listens in the clear, for everybody.
    :ivar sasl_servers: where it wants SASL, PLAIN or SCRAM-SHA-256, in the clear.
    :ivar tls_servers: where it wants SASL PLAIN over TLS.
    :ivar authority: the certificate that signed its own.
    :raises KafkaMissing: there is no Java here, or what it needs cannot be fetched.
    """

    user, password = "alice", "wonderland"

    def __init__(self) -> None:
        self._java = _find_java()
        self._jars = _fetch()
        self._folder = Path(tempfile.mkdtemp(prefix="kafka-"))
        ports = [free_port() for _ in range(4)]
        self.servers, self.sasl_servers, self.tls_servers, _ = (f"127.0.0.1:{port}" for port in ports)
        self.authority = self._folder / "authority.pem"
        self._write_settings(ports)
        self._process: subprocess.Popen[bytes] | None = None
        self.admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        self._producer = Producer({"bootstrap.servers": self.servers, "linger.ms": 0, "log_level": 0})
        self._run(
            "kafka.tools.StorageTool", "format", "-t", _cluster_id(), *self._scram(), "-c", self._settings
        )

    def start(self) -> None:
        """Start it, and return once it answers."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("kafka.Kafka", self._settings), stdout=log, stderr=log, cwd=self._folder
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """Stop it as an operator would."""
        assert self._process is not None, "it was never started"
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Stop it with SIGKILL."""
        assert self._process is not None, "it was never started"
        self._process.kill()
        self._process.wait(20)

    def remove(self) -> None:
        """Kill it, if it runs, and remove its data."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def create_topic(self, name: str, partitions: int = 1, **settings: str) -> None:
        """Create a topic, and return once it can be written to.

        :param settings: of the topic, with underscores for dots.
        """
        config = {key.replace("_", "."): value for key, value in settings.items()}
        _done(self.admin.create_topics([NewTopic(name, partitions, 1, config=config)]).values())
        _again_and_again(lambda: self.ends(name), "the topic")

    def add_partitions(self, name: str, count: int) -> None:
        """Give a topic more partitions, so many altogether."""
        _done(self.admin.create_partitions([NewPartitions(name, count)]).values())

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        _done(self.admin.delete_topics([name]).values())

    def delete_records(self, name: str, before: int, partition: int = 0) -> None:
        """Delete the records of a partition before an offset."""
        _done(self.admin.delete_records([TopicPartition(name, partition, before)]).values())

    def produce(self, topic: str, *values: bytes | None, partition: int = 0, **arguments: Any) -> None:
        """Append records, and return once they are there."""
        errors: list[Any] = []
        for value in values:
            self._producer.produce(
                topic,
                value=value,
                partition=partition,
                on_delivery=lambda error, _: errors.append(error) if error else None,
                **arguments,
            )
            self._producer.poll(0)
        assert self._producer.flush(60) == 0
        assert not errors, errors[0]

    def producer(self, **settings: Any) -> Producer:
        """Return a producer with settings of its own, with underscores for dots."""
        named = {key.replace("_", "."): value for key, value in settings.items()}
        return Producer({"bootstrap.servers": self.servers, "log_level": 0, **named})

    def ends(self, name: str) -> dict[int, tuple[int, int]]:
        """Return by partition where a topic begins and ends."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": "tests", "log_level": 0})
        try:
            partitions = consumer.list_topics(name, timeout=10).topics[name].partitions
            assert partitions, "the topic is not known yet"
            return {
                number: consumer.get_watermark_offsets(TopicPartition(name, number), timeout=10)
                for number in partitions
            }
        finally:
            consumer.close()

    def tail(self, lines: int = 30) -> str:
        """Return the end of its output."""
        return (
            "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
            if self._log.exists()
            else ""
        )

    @property
    def _settings(self) -> Path:
        return self._folder / "server.properties"

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _scram(self) -> tuple[str, str]:
        return "--add-scram", f"SCRAM-SHA-256=[name={self.user},password={self.password}]"

    def _write_settings(self, ports: list[int]) -> None:
        names = ("CLEAR", "SASL", "SECURE", "CONTROLLER")
        protocols = ("PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL", "PLAINTEXT")
        listeners = [f"{name}://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)]
        module = "org.apache.kafka.common.security"
        plain = f'{module}.plain.PlainLoginModule required user_{self.user}="{self.password}";'
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{ports[3]}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "CLEAR",
            "listeners": ",".join(listeners),
            "advertised.listeners": ",".join(listeners[:3]),
            "listener.security.protocol.map": ",".join(map(":".join, zip(names, protocols, strict=True))),
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            "listener.name.sasl.plain.sasl.jaas.config": plain,
            "listener.name.sasl.scram-sha-256.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
            "listener.name.secure.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.secure.plain.sasl.jaas.config": plain,
            "listener.name.secure.ssl.keystore.type": "PEM",
            "listener.name.secure.ssl.keystore.location": _write_certificates(self._folder),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
            "super.users": "User:ANONYMOUS",
            "log.dirs": self._folder / "data",
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "broker.heartbeat.interval.ms": "300",
            "broker.session.timeout.ms": "1500",  # after which a killed one may come back
            "log.cleaner.backoff.ms": "200",
            "log.retention.check.interval.ms": "1000",
            "log.initial.task.delay.ms": "500",
            "group.initial.rebalance.delay.ms": "0",
        }
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def _command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        return [self._java, *_JAVA, "-cp", f"{self._jars}/*", program, *arguments]

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            self._command(program, *arguments), capture_output=True, text=True, cwd=self._folder, check=False
        )
        assert done.returncode == 0, f"{program} failed: {done.stdout}{done.stderr}"

    def _wait_until_it_answers(self) -> None:
        def answers() -> bool:
            assert self._process is not None, "it was started"
            if self._process.poll() is not None:
                raise AssertionError(f"Kafka ended by itself:\n{self.tail()}")
            return bool(self.admin.list_topics(timeout=1).brokers)

        try:
            _again_and_again(answers, "Kafka", seconds=90)
        except TimeoutError:
            raise AssertionError(f"Kafka does not answer:\n{self.tail()}") from None


def _find_java() -> str:
    java = shutil.which("java")
    if java is None:
        raise KafkaMissing("no Java on this machine: install a JRE, 17 or newer")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version.group(1)) < 17:
        raise KafkaMissing(
            f"Kafka needs Java 17 or newer; here is {said.splitlines()[0] if said else 'none'}"
        )
    return java


def _fetch() -> Path:
    """Return the folder of Kafka's jars, fetched once per machine."""
    cache = cache_folder()
    folder = cache / f"kafka-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaMissing("no Maven on this machine to fetch Kafka with")
    fetched = Path(tempfile.mkdtemp(dir=cache))
    command: list[str | Path] = [
        maven,
        "-q",
        "-B",
        "-f",
        _POM,
        _PLUGIN,
        f"-DoutputDirectory={fetched}",
        "-DincludeScope=runtime",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
        if done.returncode != 0:
            raise KafkaMissing(f"Maven could not fetch Kafka: {done.stdout[-500:]}")
        with contextlib.suppress(OSError):  # another run was faster
            fetched.rename(folder)
    except subprocess.TimeoutExpired:
        raise KafkaMissing(f"Maven could not fetch Kafka within {_FETCH_SECONDS} s") from None
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return folder


def _write_certificates(folder: Path) -> Path:
    """Write an authority, and what it signs for 127.0.0.1; return the latter with its key."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    authority = _certificate(name, name, authority_key, authority_key, x509.BasicConstraints(True, None))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    signed = _certificate(name, subject, authority_key, key, address)
    (folder / "authority.pem").write_bytes(authority)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "broker.pem").write_bytes(private + signed)
    return folder / "broker.pem"


def _certificate(issuer: x509.Name, subject: x509.Name, signer: Any, key: Any, extension: Any) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _cluster_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "a")


def _done(futures: Iterable[Any]) -> None:
    for future in futures:
        future.result(30)


def _again_and_again(ask: Callable[[], T], what: str, seconds: float = 30) -> T:
    end = time.monotonic() + seconds
    while True:
        try:
            answer = ask()
        except (KafkaException, KeyError, AssertionError) as error:
            if isinstance(error, AssertionError) and "by itself" in str(error):
                raise
        else:
            if answer:
                return answer
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)
