"""Batches as the gateway makes and shows them: requests, estimates, partial output."""
