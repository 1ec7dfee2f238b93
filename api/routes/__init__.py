"""The HTTP routes, a module per kind of object."""
