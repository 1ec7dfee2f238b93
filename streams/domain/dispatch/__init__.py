"""Which lines run next, where, and how many."""
