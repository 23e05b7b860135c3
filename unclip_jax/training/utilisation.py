"""How much of the devices a run uses: arithmetic (MFU) and memory."""

from unclip_jax.training.flops import model_flops
from unclip_jax.training.hardware import GIB, peak_flops


class Utilisation:
    """Measures of one run; those that its devices do not have are left out.

    mfu           model_flops(...) / (step time * devices * peak), where the peak is
                  that of bfloat16, whatever the run computes in (chips.py)
    hbm_gib       memory in use, of the fullest of this process's devices
    hbm_peak_gib  the most that it ever was
    """

    def __init__(self, stage, mesh, batch_size: int, params):
        """`params` may be ShapeDtypeStructs: they are only traced."""
        peak = peak_flops(mesh.devices.flat[0].device_kind)
        self._local = mesh.local_devices
        self._peak = peak and peak * mesh.size
        # tracing takes seconds for a large model: only where it is of use
        self._flops = model_flops(stage, batch_size, params) if peak else None

    def at(self, step_seconds: float) -> dict[str, float]:
        """The measures, given the mean time of a step."""
        values = {}
        if self._peak:
            values["mfu"] = self._flops / (step_seconds * self._peak)
        found = [device.memory_stats() for device in self._local]
        for name, key in (
            ("hbm_gib", "bytes_in_use"),
            ("hbm_peak_gib", "peak_bytes_in_use"),
        ):
            sizes = [stats[key] for stats in found if stats and key in stats]
            if sizes:
                values[name] = max(sizes) / GIB
        return values
