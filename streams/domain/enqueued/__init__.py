"""How much of a tenant's work may be enqueued, and which of its batches wait for room."""
