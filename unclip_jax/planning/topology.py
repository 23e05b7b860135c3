"""TPU slices that are not there: their devices, as jax sees them."""

import math
import os

from unclip_jax.errors import UsageError
from unclip_jax.training.hardware import CHIPS


def count_devices(topology: str) -> int:
    """Devices of "v5p:4x4x8" or "cpu:8". Raises UsageError for another form."""
    return math.prod(_sizes(topology))


def make_devices(topology: str):
    """Devices of a TPU slice that is not there; None for a CPU or GPU.

    Raises UsageError when there is no such slice, or no compiler for it.
    """
    _sizes(topology)
    generation = topology.partition(":")[0]
    if generation in ("cpu", "gpu"):
        return None
    if generation not in CHIPS:
        raise UsageError(
            f"--topology={topology}: {generation!r} is not one of "
            f"{', '.join((*CHIPS, 'cpu', 'gpu'))}"
        )
    from jax.experimental import topologies

    # libtpu shall not look for a metadata host, nor complain that there is none
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    # several plans at once: the lock is for the device, and none is opened
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        # by default the two cores of a v4 are devices of their own; on the machines
        # they are one
        cores = {"chip_config_name": "megacore"} if generation == "v4" else {}
        return topologies.get_topology_desc(topology, "tpu", **cores).devices
    except Exception as error:  # bare RuntimeError or NotImplementedError, by version
        raise UsageError(
            f"cannot describe the TPU slice {topology} ({error}): is libtpu there "
            "(pip install -r requirements-tpu.txt), and does that generation have a "
            "slice of this shape?"
        ) from error


def fill_axes(sizes: dict[str, int], count: int, topology: str) -> dict[str, int]:
    """A mesh's axes with -1 filled in, for `count` devices of `topology`.

    Raises UsageError when they do not multiply to `count`, with the numbers.
    """
    fixed = math.prod(size for size in sizes.values() if size > 0)
    filled = {a: count // fixed if s == -1 else s for a, s in sizes.items()}
    if math.prod(filled.values()) != count:
        text = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UsageError(
            f"the mesh {text} does not fit the {count} devices of {topology}"
        )
    return filled


def _sizes(topology: str) -> list[int]:
    parts = topology.partition(":")[2].split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(
            f"--topology={topology}: expected a generation and its shape, such as "
            "v5p:4x4x8, v5e:16x16 or cpu:8"
        )
    return [int(part) for part in parts]
