"""Checking an input file and planning its lines."""
