"""Stored prompts: their registry, their template language, and lines that use them."""
