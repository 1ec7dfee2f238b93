"""An OpenAI-style model server with latency, slots and seeded faults, for demos and tests."""
