"""The gateway: the HTTP API over a read model, and the command line."""
