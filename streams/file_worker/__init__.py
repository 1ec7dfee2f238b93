"""Intake (input file to plan) and assembly (segments to output and error files)."""
