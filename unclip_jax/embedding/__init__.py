"""Runs the frozen CLIP over a source and writes records."""
