"""Shadowcat's benchmarks and its audit of "exactly one": `python -m benchmarks --help`."""
