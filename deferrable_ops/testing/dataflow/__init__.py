"""A fake Dataflow server on the loopback address, to which Google's client library for Dataflow can connect.

The server runs in this process or in a separate process.
"""

from deferrable_ops.testing.dataflow.control import DataflowControl, dataflow_process
from deferrable_ops.testing.dataflow.fake import FakeDataflow, fake_dataflow
from deferrable_ops.testing.dataflow.jobs import FakeJob, Step

__all__ = ["DataflowControl", "FakeDataflow", "FakeJob", "Step", "dataflow_process", "fake_dataflow"]
