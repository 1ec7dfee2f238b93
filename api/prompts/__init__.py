"""Stored prompts over HTTP: reading requests, writing the register, showing what is there."""
