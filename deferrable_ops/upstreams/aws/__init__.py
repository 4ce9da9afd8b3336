"""AWS connections and sessions, shared by all AWS upstreams."""
