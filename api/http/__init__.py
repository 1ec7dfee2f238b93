"""What every HTTP request passes before a route has it, without knowing any route."""
