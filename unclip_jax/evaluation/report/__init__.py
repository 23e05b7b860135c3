"""What an evaluation writes: results, curves, and the HTML report."""
