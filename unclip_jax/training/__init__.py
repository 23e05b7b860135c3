"""The training loop and what it keeps: state, optimizer, checkpoints, metrics."""
