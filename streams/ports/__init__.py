"""What the pipeline needs of the outside world, as Protocols."""
