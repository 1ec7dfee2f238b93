"""What the gates hear: each signal has a small reader of its own."""
