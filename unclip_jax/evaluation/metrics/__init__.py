"""Metrics: plain functions of features (numpy, float64), one per file.

`registry.py` gives each one the name that a config uses.
"""
