"""How many batch calls an upstream can carry without real-time traffic noticing."""
