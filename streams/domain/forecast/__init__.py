"""When batches will be done: the pace of the pools, and what it makes of the order of release."""
