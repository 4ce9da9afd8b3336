"""SQS for tests: moto's server, behind a proxy that counts, and has the faults that it is told to have."""

from real_sqs.proxy import Call, Fault, FaultyProxy
from real_sqs.server import ACCOUNT, REGION, RealSqs, name_of
from real_sqs.stored import Stored

__all__ = ["ACCOUNT", "REGION", "Call", "Fault", "FaultyProxy", "RealSqs", "Stored", "name_of"]
