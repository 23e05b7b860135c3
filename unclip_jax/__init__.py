"""Open unCLIP (DALL-E 2) in JAX: train every stage, evaluate, export, sample."""

__version__ = "0.1.0"
