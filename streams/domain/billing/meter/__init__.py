"""How usage is counted once, and sent once to where it is billed."""
