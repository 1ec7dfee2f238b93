"""Batches that come and go over Kafka."""
