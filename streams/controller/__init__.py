"""One state machine per batch, and the dispatcher that releases its lines."""
