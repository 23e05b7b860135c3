"""Eight virtual CPU devices for every test, set before jax is imported.

Programs are small and many, and most of the time goes into compiling them: without
XLA's optimisations that is 40% less.
"""

import os
import sys

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py could configure it")

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        *(
            flag
            for flag in os.environ.get("XLA_FLAGS", "").split()
            if "host_platform_device_count" not in flag
        ),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    ]
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up notes
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # TensorFlow and torch stay on CPU
