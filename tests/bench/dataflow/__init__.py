"""What a wait for a Dataflow job costs."""
