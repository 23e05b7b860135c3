"""The environment of the tests and of the processes that they start."""

import os
import pathlib
from importlib import metadata

ROOT = pathlib.Path(__file__).parents[1]


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for virtual CPU devices and quick compilation.

    The tests' programs are small and many, and most of the time goes into compiling
    them. Without optimizations, in one LLVM module and by the older emitters that takes
    a quarter of the time (a UNet's gradient: 8.4 s, 4.4 s, 2.2 s and 1.8 s of CPU time
    with each flag added). XLA stops at a flag that it does not know, so the last one,
    which is to be removed, is for the jaxlib that it was tried with.
    """
    flags = [
        f"--xla_force_host_platform_device_count={devices}",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if metadata.version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """os.environ for a process that computes on so many CPU devices."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": str(ROOT),
        **more,
    }


def one_device():
    """A mesh of one device: eight would compute eight rows where a test has two."""
    import jax

    from unclip_jax.parallel.mesh import make_mesh

    return make_mesh(devices=jax.devices()[:1])
