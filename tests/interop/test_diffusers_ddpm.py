import json

import pytest

from unclip_jax.interop.diffusers_ddpm import FILE, read_ddpm, write_ddpm


@pytest.mark.parametrize("schedule", ["linear:0.001:0.03", "cosine"])
def test_zero_terminal_snr_is_written_and_read(tmp_path, schedule):
    diffusion = {
        "schedule": f"zero_snr:{schedule}",
        "num_steps": 1000,
        "prediction": "v",
        "clip": None,
        "sampler": "ddim",
    }
    write_ddpm(tmp_path, diffusion)
    written = json.loads((tmp_path / FILE).read_text())
    assert written["rescale_betas_zero_snr"] is True
    found = read_ddpm(tmp_path, learned_sigma=False)
    assert {key: found[key] for key in diffusion} == diffusion
