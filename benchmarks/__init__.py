"""Measurements of this project against the alternatives, each run with `python -m benchmarks.<name>`."""
