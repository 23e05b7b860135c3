"""Eight virtual CPU devices for every test, set before jax is imported."""

import os
import sys

from tests.environment import xla_flags

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py could configure it")

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = xla_flags(8)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # TensorFlow and torch stay on CPU
