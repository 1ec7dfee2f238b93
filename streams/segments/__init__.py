"""Reading the segments of a batch, for whoever merges them: assembly, and the gateway."""
