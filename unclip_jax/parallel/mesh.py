"""The device mesh: axes data, fsdp and tensor, always with `AxisType.Auto`.

jax.make_mesh now defaults to Explicit axes, under which Linen attention with sharded
parameters raises ShardingTypeError. Activate the mesh with `jax.set_mesh`: the old
`with mesh:` makes logical constraints silent no-ops.
"""

import math
import os
import traceback
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from unclip_jax.errors import UsageError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the batch is split over both


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over all devices (or `devices`); one axis may be -1, "what is left".

    On TPU slices neighbours in the mesh are neighbours in the torus; over several
    slices, only the data axis crosses the network between them. GPUs and CPUs are
    taken host by host, so the last axes stay within a machine as far as they fit into
    one, and any axis may span several.

    Raises UsageError when the axes do not multiply to the number of devices, or the
    data axis does not divide among the slices of TPUs.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    text = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UsageError(
            f"config.mesh: {text}: axes must be positive, at most one of them -1"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices) or fixed > len(devices):
        raise UsageError(
            f"config.mesh: {text} does not fit {len(devices)} devices: the axes must "
            f"multiply to {len(devices)}"
        )
    slices = _tpu_slices(devices)
    if sizes["data"] % slices:
        raise UsageError(
            f"config.mesh: {text} does not fit {slices} slices: the data axis, "
            f"which is {sizes['data']}, must be a multiple of {slices}"
        )
    if slices > 1:
        within = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
        array = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        # fsdp=8 on a 4x4x4 torus needs an axis of the torus split in two
        array = mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _tpu_slices(devices: Sequence[jax.Device]) -> int:
    """Number of TPU slices; XLA gives other devices a slice_index per machine."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def batch_shards(mesh: Mesh) -> int:
    """Number of parts a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def why_no_devices(error: Exception) -> str:
    """What to tell of an error that jax raised as it looked for devices; "" of others.

    Of JAX_PLATFORMS=cuda where it is not installed it says nothing but AssertionError.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not frames[-1].filename.endswith("xla_bridge.py"):
        return ""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    return (
        f"jax finds no devices with JAX_PLATFORMS={wanted} "
        f"({error or 'no such platform here'}): install jax for them, or set "
        "JAX_PLATFORMS=cpu"
    )
