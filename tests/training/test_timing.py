"""Windows of steps, and the goodput of a run with several starts."""

import json
import time

import numpy as np
import pytest

from unclip_jax.training import timing
from unclip_jax.training.hardware import GIB, peak_flops


def metrics(loss, skipped):
    return {"loss": np.float32(loss), "skipped": np.int32(skipped)}


def test_a_window_knows_which_steps_were_skipped():
    window = timing.StepTimer(8, devices=2, skipped=3)  # a resumed run
    for loss, skipped in ((1, 3), (np.nan, 4), (2, 4)):
        window.add(metrics(loss, skipped), wait=False)
    values = window.close(waited=0.0)
    assert window.skipped == [False, True, False]
    assert values["skipped_steps"] == 4 and values["loss"] == 1.5
    window.add(metrics(1, 5), wait=False)
    window.close(waited=0.0)
    assert window.skipped == [True]


def test_the_time_between_steps_is_not_theirs():
    window = timing.StepTimer(8, devices=2)
    window.add(metrics(1, 0), wait=False)
    time.sleep(0.2)
    window.pause()
    values = window.close(waited=0.0)
    assert values["step_seconds"] < 0.15
    assert values["images_per_second"] > 2 * values["images_per_second_per_chip"] - 1e-6


def test_goodput_goes_on_over_restarts_and_loses_what_a_crash_undid(tmp_path):
    now = time.perf_counter()
    first = timing.Goodput(tmp_path, 0, now - 10)
    assert first.add(50, 4.0) == pytest.approx(0.4, rel=0.01)
    assert first.add(100, 2.0) == pytest.approx(0.6, rel=0.01)
    # 100 steps in 10 s, 6 s of them productive; a kill goes back to step 50
    second = timing.Goodput(tmp_path, 50, time.perf_counter() - 2)
    assert second.add(75, 1.5) == pytest.approx((3 + 1.5) / 12, rel=0.01)
    kept = json.loads((tmp_path / "goodput.json").read_text())
    assert kept["step"] == 75 and kept["up_seconds"] == pytest.approx(12, rel=0.01)
    assert kept["productive_seconds"] == pytest.approx(4.5)


class Device:
    def __init__(self, kind, used=None):
        self.device_kind, self.used = kind, used

    def memory_stats(self):
        if self.used is None:
            return None
        return {"bytes_in_use": self.used, "peak_bytes_in_use": 2 * self.used}


class Mesh:
    def __init__(self, *devices):
        self.devices = np.array(devices)
        self.local_devices, self.size = list(devices), len(devices)


def test_utilisation_of_chips_that_are_known(monkeypatch):
    monkeypatch.setattr("unclip_jax.training.timing.model_flops", lambda *_: 459e12)
    mesh = Mesh(Device("TPU v5", GIB), Device("TPU v5", 3 * GIB))
    found = timing.DeviceUse(None, mesh, 8, {}).at(step_seconds=2.0)
    assert found == {"mfu": 0.25, "hbm_gib": 3.0, "hbm_peak_gib": 6.0}
    assert timing.DeviceUse(None, Mesh(Device("cpu")), 8, {}).at(1.0) == {}


def test_peaks_by_the_kind_of_device():
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("cpu") is None
