"""A fake Dataflow on loopback, spoken to by the real clients: in this process, or in one of its own."""

from deferrable_ops.testing.dataflow.control import DataflowControl, dataflow_process
from deferrable_ops.testing.dataflow.fake import FakeDataflow, fake_dataflow
from deferrable_ops.testing.dataflow.jobs import FakeJob, Step

__all__ = ["DataflowControl", "FakeDataflow", "FakeJob", "Step", "dataflow_process", "fake_dataflow"]
