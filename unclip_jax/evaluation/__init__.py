"""Evaluation: features, statistics, metrics (one per file), the runner, the report.

Every metric is a plain function of features (numpy, float64) in a file of metrics/,
with a class that a config can ask for by the file's name; `runner.py` generates images,
computes the metrics that the config asks for and writes the results.
"""
