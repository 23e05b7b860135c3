"""What accelerators can do: memory and peak arithmetic."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU generation, per device of jax (a v4 or v5p chip is one device).

    Attributes:
      name: as in a topology, "v5p".
      kind: jax.Device.device_kind.
      hbm: bytes of memory that a program may use, as the compiler says.
      peak: bfloat16 operations per second.
    """

    name: str
    kind: str
    hbm: int
    peak: float


# Peaks are Google Cloud's published figures; memory is a little below those.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", int(30.75 * GIB), 275e12),
        Chip("v5e", "TPU v5 lite", int(15.75 * GIB), 197e12),
        Chip("v5p", "TPU v5", int(95.74 * GIB), 459e12),
        Chip("v6e", "TPU v6 lite", int(31.25 * GIB), 918e12),
    )
}
# How a GPU's device_kind begins -> bfloat16 operations per second of its data sheet,
# without sparsity. The longest beginning counts.
GPUS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 operations per second of a jax device; None for a CPU or unknown one."""
    for chip in CHIPS.values():
        if chip.kind == device_kind:
            return chip.peak
    known = [name for name in GPUS if device_kind.startswith(name)]
    return GPUS[max(known, key=len)] if known else None
