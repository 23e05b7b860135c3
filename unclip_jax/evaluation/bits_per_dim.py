"""Bits per dimension of images, by a decoder: the likelihood that IDDPM reports.

In the work folder appears bits_per_dim.json. The number is an upper bound of -log2 of
the probability of an image, given its caption and its embedding, per pixel and channel
(IDDPM, equation 3): of training's whole process, without guidance, with one draw of
noise at each timestep. The paper gives none for unCLIP; it compares decoders of one
size and data.
"""

import dataclasses
import pathlib

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import records
from unclip_jax.generation.estimation import bits_per_dim
from unclip_jax.progress import ProgressLine


@dataclasses.dataclass(frozen=True)
class BoundConfig:
    """How the bound is computed."""

    batch_size: int = 32  # images at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitsPerDimConfig(records.RecordsConfig):
    """The config: an export with a decoder, and records with images."""

    bits_per_dim: BoundConfig

    def __post_init__(self):
        if self.count < 1 or self.bits_per_dim.batch_size < 1:
            raise UsageError(
                "config.count must be at least 1, and so must config.bits_per_dim."
                f"batch_size; got {self.count} and {self.bits_per_dim.batch_size}"
            )


def measure_bits_per_dim(config, workdir, *, model=None, log=print):
    """Measures the bound of images of the data; returns what bits_per_dim.json holds.

    Args:
      config: see BitsPerDimConfig.
      workdir: gets bits_per_dim.json; made if needed.
      model: an UnCLIP to use instead of loading config.model.
      log: called with each line for the user.

    Raises:
      UsageError, FileNotFoundError: a config that cannot work, and what
        records.read_examples raises.
    """
    config = config_lib.build(BitsPerDimConfig, config, "config")
    parts, batch_size = ("clip", "decoder"), config.bits_per_dim.batch_size
    model, examples, about = records.read_examples(
        config, parts, batch_size, model, images=True
    )
    bits = bits_per_dim(
        model,
        [example["caption"] for example in examples],
        np.stack([example["clip_image"] for example in examples]),
        model.fit_for_decoder([example["image"] for example in examples]),
        config.seed,
        progress=ProgressLine("bits per dimension"),
    )
    results = {
        "format": "unclip_jax bits per dimension",
        "version": 1,
        "bits_per_dim": float(bits.mean(dtype=np.float64)),
        "stderr": float(bits.std(dtype=np.float64) / np.sqrt(len(bits))),
        "size": model.draw_size,
        **about,
    }
    log(
        f"{results['bits_per_dim']:.4f} ± {results['stderr']:.4f} bits per dimension "
        f"(an upper bound) of {len(bits)} images of {model.draw_size} pixels"
    )
    records.write_results(pathlib.Path(workdir) / "bits_per_dim.json", results, log)
    return results
