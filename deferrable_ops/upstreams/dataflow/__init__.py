"""Google Cloud Dataflow: launching, watching and stopping jobs."""
