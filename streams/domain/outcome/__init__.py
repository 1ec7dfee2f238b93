"""What one call to an upstream means for its line."""
