"""What may be spent, what was, and which batches that holds."""
