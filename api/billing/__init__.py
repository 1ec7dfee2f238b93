"""Billing as operators see it: customers, decisions, Stripe's catalogue, reconciling."""
