"""The XML-RPC interface of a running supervisord."""
