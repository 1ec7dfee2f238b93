"""The gateway's side of the real-time lane: who waits for which answer."""
