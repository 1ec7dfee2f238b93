"""The life of a batch: its states, and the fold of its log."""
