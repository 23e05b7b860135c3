"""Evaluation: features, statistics, metrics (one per file), the runner, the report.

Every metric is a plain function of features (numpy, float64).  `registry.py` gives
each one a name that a config can use; `runner.py` generates pictures, computes the
metrics the config asks for and writes the results.
"""
