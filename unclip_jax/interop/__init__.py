"""Weights on disk: the native export folder, and other projects' formats."""
