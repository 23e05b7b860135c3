"""scheduler_config.json of the schedulers that latent decoders are published with.

DDPMScheduler, DDIMScheduler and others of diffusers share what matters here: the betas,
what the model predicts, the bound on x_0 and the spacing of the steps. Karlo's own
UnCLIPScheduler is diffusers_scheduler's.
"""

import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from unclip_jax.diffusion.schedule import ZERO_SNR
from unclip_jax.errors import UsageError
from unclip_jax.files import read_json, write_json

FILE = "scheduler_config.json"
PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
SAMPLERS = {  # theirs -> ours
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "HeunDiscreteScheduler": "heun",
    "PNDMScheduler": "ddim",
}
NOT_THE_SAME = ("PNDMScheduler",)  # read, and said to be another
SPACINGS = ("leading", "linspace")
DEFAULTS = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "variance_type": "fixed_small",
}


def read_ddpm(folder: str | os.PathLike, learned_sigma: bool) -> dict[str, Any]:
    """The part's "diffusion" section.

    Args:
      folder: holds scheduler_config.json.
      learned_sigma: whether the model predicts a variance. It is used if the file
        says so (variance_type "learned_range"), else discarded.

    Returns:
      {"schedule", "num_steps", "prediction", "clip", "sampler", "variance", "spacing",
      "threshold"}, the last of which is (quantile, most) of dynamic thresholding, or
      None; and "to_x0": False where DDIM ends at the noise of timestep 0.

    Raises:
      FileNotFoundError: no such file.
      UsageError: another scheduler, or a value that this package has not.
    """
    file = pathlib.Path(folder) / FILE
    config = read_json(file, f"{file} is missing: the folder is not complete")
    name = config.get("_class_name")
    if name not in SAMPLERS:
        raise UsageError(
            f"{file} is of a {name}; those read are {', '.join(SAMPLERS)}: replace it "
            "by one of them (their from_config takes another's config)"
        )
    if name in NOT_THE_SAME:
        text = f"{file} is of a {name}: {SAMPLERS[name]} draws instead"
        warnings.warn(text, stacklevel=2)
    # only the first two bound x_0 at all
    bounded = name in ("DDPMScheduler", "DDIMScheduler")
    settings = {**DEFAULTS, "clip_sample": bounded, **config}
    if settings["trained_betas"]:
        raise UsageError(f"{file}: trained_betas is not supported")
    threshold = None
    if settings["thresholding"]:
        threshold = settings["dynamic_thresholding_ratio"], settings["sample_max_value"]
    clips = settings["clip_sample"] and not threshold
    diffusion = {
        "schedule": _schedule(settings, file),
        "num_steps": settings["num_train_timesteps"],
        "prediction": _known(settings, "prediction_type", PREDICTIONS, file),
        "clip": settings["clip_sample_range"] if clips else None,
        "threshold": threshold,
        "sampler": SAMPLERS[name],
        "spacing": _spacing(settings, file),
    }
    if settings["rescale_betas_zero_snr"]:
        diffusion["schedule"] = ZERO_SNR + diffusion["schedule"]
    if not settings.get("set_alpha_to_one", name != "PNDMScheduler"):
        diffusion["to_x0"] = False
    if name == "DDPMScheduler":
        diffusion["variance"] = _variance(settings, learned_sigma, file)
    return diffusion


def write_ddpm(folder: str | os.PathLike, diffusion: Mapping[str, Any]) -> None:
    """The inverse of `read_ddpm`; of another sampler than DDPM, that of DDIM.

    Args:
      folder: made if it does not exist.
      diffusion: the part's section.

    Raises UsageError for a process that their schedulers have not.
    """
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    ddpm = diffusion.get("sampler") == "ddpm"
    spacing, _, offset = (diffusion.get("spacing") or "leading").partition("+")
    config = {
        "_class_name": "DDPMScheduler" if ddpm else "DDIMScheduler",
        **_their_betas(diffusion["schedule"]),
        "clip_sample": diffusion.get("clip") is not None,
        "clip_sample_range": diffusion.get("clip") or 1.0,
        "num_train_timesteps": diffusion["num_steps"],
        "prediction_type": predictions[diffusion["prediction"]],
        "steps_offset": int(offset or 0),
        "timestep_spacing": spacing,
        "trained_betas": None,
    }
    if threshold := diffusion.get("threshold"):
        config |= {
            "thresholding": True,
            "dynamic_thresholding_ratio": threshold[0],
            "sample_max_value": threshold[1],
        }
    if not ddpm:
        config["set_alpha_to_one"] = diffusion.get("to_x0", True)
    if ddpm:
        config["variance_type"] = diffusion.get("variance") or "fixed_small"
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, config)


def _schedule(settings, file):
    """Our name for their betas."""
    name = settings["beta_schedule"]
    if name == "squaredcos_cap_v2":
        return "cosine"
    if name not in ("linear", "scaled_linear"):
        raise UsageError(
            f"{file}: beta_schedule {name!r}: expected 'linear', 'scaled_linear' or "
            "'squaredcos_cap_v2'"
        )
    return f"{name}:{settings['beta_start']:g}:{settings['beta_end']:g}"


def _their_betas(schedule):
    if schedule.startswith(ZERO_SNR):
        rest = schedule.removeprefix(ZERO_SNR)
        return {**_their_betas(rest), "rescale_betas_zero_snr": True}
    if schedule == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2"}
    usual = {
        "linear": "linear:0.0001:0.02",
        "scaled_linear": "scaled_linear:0.00085:0.012",
    }
    name, first, last = usual.get(schedule, schedule).split(":")
    betas = {"beta_start": float(first), "beta_end": float(last)}
    return {"beta_schedule": name, **betas}


def _spacing(settings, file):
    spacing, offset = settings["timestep_spacing"], settings["steps_offset"]
    if spacing not in SPACINGS:
        raise UsageError(
            f"{file}: timestep_spacing {spacing!r}: expected one of "
            f"{', '.join(SPACINGS)}"
        )
    if spacing == "linspace":
        return "linspace"  # from T - 1 to 0, without an offset
    return f"leading+{offset}" if offset else "leading"


def _variance(settings, learned_sigma, file):
    variance = settings["variance_type"]
    known = {
        "fixed_small": "fixed_small",
        "fixed_small_log": "fixed_small",
        "fixed_large": "fixed_large",
        "learned_range": "learned_range",
    }
    variance = _known(settings, "variance_type", known, file)
    if variance == "learned_range" and not learned_sigma:
        raise UsageError(
            f"{file}: variance_type 'learned_range' does not fit a model that does not "
            "predict its variance; expected 'fixed_small'"
        )
    return variance


def _known(settings, key, table, file):
    if settings[key] not in table:
        raise UsageError(
            f"{file}: {key} {settings[key]!r}: expected one of {', '.join(table)}"
        )
    return table[settings[key]]
