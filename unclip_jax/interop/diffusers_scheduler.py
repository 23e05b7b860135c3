"""scheduler_config.json of diffusers' UnCLIPScheduler, read and written.

Our parts keep what it says in their config's "diffusion": the process, what the model
predicts, the bound on x0, and how many steps of which sampler are usual.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from unclip_jax.errors import UsageError
from unclip_jax.files import read_json, write_json

FILE = "scheduler_config.json"
CLASS = "UnCLIPScheduler"
PREDICTIONS = {"epsilon": "epsilon", "sample": "x0"}  # theirs -> ours
SCHEDULES = {"squaredcos_cap_v2": "cosine"}
VARIANCES = ("fixed_small_log", "learned_range")


def read_scheduler(
    folder: str | os.PathLike | None, usual: Mapping[str, Any], learned_sigma: bool
) -> dict[str, Any]:
    """The part's "diffusion" section.

    Args:
      folder: holds scheduler_config.json; None is the usual section.
      usual: the section of Karlo's, whose "sampling_steps" (as many as their pipeline
        takes) the file does not say.
      learned_sigma: whether the model predicts its variance.

    Returns:
      {"schedule", "num_steps", "prediction", "clip", "sampler", "sampling_steps"}.

    Raises:
      FileNotFoundError: no such file.
      UsageError: another scheduler, or a value that this package has not.
    """
    if folder is None:
        return dict(usual)
    file = pathlib.Path(folder) / FILE
    config = read_json(file, f"{file} is missing: the folder is not complete")
    found = config.get("_class_name")
    if found != CLASS:
        raise UsageError(f"{file} is of a {found}; only {CLASS} is read")
    variance = config.get("variance_type", "fixed_small_log")
    wanted = "learned_range" if learned_sigma else "fixed_small_log"
    if variance != wanted:
        raise UsageError(
            f"{file}: variance_type {variance!r} does not fit a model that "
            f"{'predicts' if learned_sigma else 'does not predict'} its variance; "
            f"expected {wanted!r}"
        )
    clip = config.get("clip_sample_range", 1.0)
    return {
        "schedule": _known(file, config, "beta_schedule", SCHEDULES),
        "num_steps": config.get("num_train_timesteps", 1000),
        "prediction": _known(file, config, "prediction_type", PREDICTIONS),
        "clip": clip if config.get("clip_sample", True) else None,
        "sampler": "ddpm",
        "sampling_steps": usual["sampling_steps"],
    }


def write_scheduler(
    folder: str | os.PathLike,
    diffusion: Mapping[str, Any],
    clip: float | None,
    learned_sigma: bool,
) -> None:
    """The inverse of `read_scheduler`.

    Args:
      folder: made if it does not exist.
      diffusion: the part's section.
      clip: the bound on |x0| in sampling, None for none.
      learned_sigma: whether the model predicts its variance.

    Raises UsageError for a process that their scheduler has not.
    """
    theirs = {ours: name for name, ours in SCHEDULES.items()}
    predictions = {ours: name for name, ours in PREDICTIONS.items()}
    for key, table in (("schedule", theirs), ("prediction", predictions)):
        if diffusion[key] not in table:
            raise UsageError(
                f"diffusers' {CLASS} has no {key} {diffusion[key]!r}, only "
                f"{', '.join(table)}: export in the native format"
            )
    if diffusion.get("shift") not in (None, 1):
        raise UsageError(
            f"diffusers' {CLASS} has no shift {diffusion['shift']}: export in the "
            "native format"
        )
    config = {
        "_class_name": CLASS,
        "beta_schedule": theirs[diffusion["schedule"]],
        "clip_sample": clip is not None,
        "clip_sample_range": 1.0 if clip is None else clip,
        "num_train_timesteps": diffusion["num_steps"],
        "prediction_type": predictions[diffusion["prediction"]],
        "variance_type": VARIANCES[learned_sigma],
    }
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, config)


def _known(file, config, key, table):
    value = config.get(key, next(iter(table)))
    if value not in table:
        raise UsageError(f"{file}: {key} {value!r}: expected one of {', '.join(table)}")
    return table[value]
