"""What the benches of all features share: figures, rounds, child processes, inboxes, and load."""
