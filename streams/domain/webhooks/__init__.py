"""Rules of webhooks: where they may go, what they say, and how often it is tried."""
