"""The same tokens, counted in several places, held against each other."""
