"""scheduler_config.json, both ways, and what has no counterpart."""

import json

import pytest

from unclip_jax.interop import diffusers_scheduler as scheduler

PROCESS = {"schedule": "cosine", "num_steps": 500, "prediction": "x0"}
STEPS = {"sampling_steps": 25}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("clip", [None, 5.0])
def test_round_trip(tmp_path, learned, clip):
    scheduler.write_scheduler(tmp_path, PROCESS, clip, learned)
    found = scheduler.read_scheduler(tmp_path, STEPS, learned)
    usual = {"clip": clip, "sampler": "ddpm", "sampling_steps": 25}
    assert found == {**PROCESS, **usual}
    with pytest.raises(ValueError, match="variance_type .* does not fit"):
        scheduler.read_scheduler(tmp_path, STEPS, not learned)


def test_their_class_reads_ours(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    scheduler.write_scheduler(tmp_path, PROCESS, 5.0, False)
    theirs = diffusers.UnCLIPScheduler.from_pretrained(tmp_path)
    assert theirs.config.prediction_type == "sample"
    assert theirs.config.clip_sample_range == 5.0
    assert theirs.config.num_train_timesteps == 500


def test_what_has_no_counterpart_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="scheduler_config.json is missing"):
        scheduler.read_scheduler(tmp_path, STEPS, False)
    for key, value in (("schedule", "linear"), ("prediction", "v")):
        with pytest.raises(ValueError, match=f"no {key} '{value}', only"):
            scheduler.write_scheduler(tmp_path, {**PROCESS, key: value}, 1.0, False)
    with pytest.raises(ValueError, match="has no shift 2.0: export in the native"):
        scheduler.write_scheduler(tmp_path, {**PROCESS, "shift": 2.0}, 1.0, False)
    file = tmp_path / scheduler.FILE
    file.write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    with pytest.raises(ValueError, match="is of a DDIMScheduler"):
        scheduler.read_scheduler(tmp_path, STEPS, False)
    theirs = {"_class_name": scheduler.CLASS, "prediction_type": "v_prediction"}
    file.write_text(json.dumps(theirs))
    with pytest.raises(ValueError, match="prediction_type 'v_prediction': expected"):
        scheduler.read_scheduler(tmp_path, STEPS, False)
