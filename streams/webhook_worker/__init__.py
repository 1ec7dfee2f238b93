"""Tells tenants' webhook endpoints what has happened."""
