"""Runs real-time requests at upstreams and sends their answers back, part by part."""
