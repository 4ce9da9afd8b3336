"""Calls the XML-RPC interface of a running supervisord."""
