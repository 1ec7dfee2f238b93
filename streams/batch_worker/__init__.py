"""Sends lines to upstreams and publishes their outcomes."""
