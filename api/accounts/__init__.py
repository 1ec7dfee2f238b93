"""Tenants and their API keys, as records on the `account` topic."""
