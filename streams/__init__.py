"""The pipeline: one folder per role, the pure rules in domain, the outside world behind ports."""
