"""Events and channels: how they are stored, and how waits follow them."""
