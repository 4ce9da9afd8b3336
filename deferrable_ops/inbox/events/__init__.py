"""Events and channels: storing events, and delivering them to waits."""
