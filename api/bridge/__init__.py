"""Kafka's front door: batches of producers that never speak HTTP, and their results."""
