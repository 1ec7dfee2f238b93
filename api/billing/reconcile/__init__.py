"""Holds output files, ledger, sends, and what is billed against each other."""
