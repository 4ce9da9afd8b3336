"""What a wait for an event costs."""
