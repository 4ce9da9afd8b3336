"""The Google Cloud Dataflow client: launching, watching and stopping jobs."""
