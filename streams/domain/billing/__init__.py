"""What usage costs, how it is metered once, and how it is sent."""
