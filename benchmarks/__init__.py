"""Benchmarks: each a command that times a public operation and prints what it took."""
