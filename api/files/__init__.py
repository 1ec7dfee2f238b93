"""Files' bytes: received, read by lines, and removed when nobody can ask for them."""
