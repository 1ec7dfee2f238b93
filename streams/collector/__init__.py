"""Packs outcomes into segment objects and tells the controller."""
