"""Feature extractors, their preprocessing, and files that keep features."""
