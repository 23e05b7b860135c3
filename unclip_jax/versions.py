"""The versions a result was made with, which go into its json."""

import importlib.metadata
import platform

import jax

import unclip_jax

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Returns versions of this package, Python and libraries, and the devices used."""
    devices = jax.devices()
    return {
        "unclip_jax": unclip_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
