"""The config of a run: defaults, flags, and configs that were written in full."""

import pytest

from tests.training import toy
from unclip_jax import command_line, train
from unclip_jax import config as config_lib
from unclip_jax.training import run_folder
from unclip_jax.training.run_config import config_defaults, read_config


def parse(name, *flags):
    """What `train` makes of a config file and flags."""
    parsed = []
    argv = ["train", f"--config=configs/{name}", "--workdir=w"]
    argv += [f"--config.{flag}" for flag in flags]
    with pytest.raises(SystemExit) as stop:
        command_line.run(
            lambda args: parsed.append(read_config(args.config)),
            defaults=train.defaults,
            argv=argv,
        )
    assert stop.value.code == 0
    return parsed[0]


def test_flags_set_what_the_file_leaves_out():
    config = parse(
        "icons/decoder.py",
        "data.cache=runs/index",  # a key of the source that the next flag names
        "data.source=webdataset",
        "data.min_size=64",
        "data.degradation.crop=8",
        "diffusion.min_snr_gamma=5.0",
        "diffusion.sampler=ddpm",
        "stage_options.drop_text=0.25",
        "model.scan_layers=True",
        "mesh.fsdp=2",
        "max_skipped=7",
        "watchdog.stop=60",
        "wandb.project=unclip",
        "evaluators.retrieval.every=5",
        "seed=3",
    )
    assert config.data["cache"] == "runs/index" and config.data["min_size"] == 64
    assert config.data["degradation"] == {"crop": 8}
    assert config.diffusion["min_snr_gamma"] == 5.0
    assert config.diffusion["sampler"] == "ddpm"
    assert config.stage_options["drop_text"] == 0.25 and config.model["scan_layers"]
    assert config.mesh.fsdp == 2 and config.mesh.data == -1
    assert (config.max_skipped, config.watchdog.stop, config.seed) == (7, 60.0, 3)
    assert config.watchdog.warn == 300.0 and config.wandb == {"project": "unclip"}
    assert config.evaluator_options()["retrieval"].every == 5


def test_a_run_whose_config_was_written_in_full_goes_on(tmp_path):
    short = config_lib.to_plain(parse("icons/decoder.py"))
    full = config_lib.with_defaults(short, config_defaults(short))
    full = config_lib.to_plain(full)
    assert full["diffusion"]["num_steps"] == 1000 and not full["model"]["scan_layers"]
    for config in (full, short, full):
        run_folder.claim(tmp_path / "run", config)
    full["stage_options"]["drop_text"] = 0.25
    with pytest.raises(ValueError, match=r"stage_options.drop_text \(0.5 there, 0.25"):
        run_folder.claim(tmp_path / "run", full)


def test_only_checkpoints_that_are_saved_can_be_kept():
    toy.make_config(checkpoint={"every": 4, "keep_every": 8})
    with pytest.raises(ValueError, match="keep_every 6: of the checkpoints of every 4"):
        toy.make_config(checkpoint={"every": 4, "keep_every": 6})
