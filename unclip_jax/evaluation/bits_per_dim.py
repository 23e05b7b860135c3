"""Bits per dimension of images, by a decoder: the likelihood that IDDPM reports.

The config's fields:

    model          folder of an export with a CLIP and a decoder
    data           records of that CLIP, with images (source="records", path=...)
    count          images, drawn from the data by the seed
    seed           of the draw and of the noise
    bits_per_dim   dict(batch_size=...): images at a time

In the work folder appears bits_per_dim.json. The number is an upper bound of -log2 of
the probability of an image, given its caption and its embedding, per pixel and channel
(IDDPM, equation 3): of training's whole process, without guidance, with one draw of
noise at each timestep. The paper gives none for unCLIP; it compares decoders of one
size and data.
"""

import json
import pathlib

import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.evaluation import inputs
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.estimation import bits_per_dim
from unclip_jax.progress import ProgressLine
from unclip_jax.versions import versions

KEYS = ("model", "data", "count", "seed", "bits_per_dim")


def measure_bits_per_dim(config, workdir, *, model=None, log=print):
    """Measures the bound of images of the data; returns what bits_per_dim.json holds.

    Args:
      config: see the module.
      workdir: gets bits_per_dim.json; made if needed.
      model: an UnCLIP to use instead of loading config.model.
      log: called with each line for the user.

    Raises:
      UsageError, FileNotFoundError: a config that cannot work, records of another CLIP
        or without images, an export without a decoder.
    """
    check_config(config)
    source = inputs.open_records(config.data)
    if source.image_size is None:
        raise UsageError(f"the records in {config.data.path} have no images")
    if model is None:
        batch_size = config.bits_per_dim.batch_size
        parts = ("clip", "decoder")
        model = UnCLIP.load(config.model, parts=parts, batch_size=batch_size)
    clip = inputs.check_clip(source, config.data.path, model, config.model)
    examples = inputs.draw_examples(source, config.count, config.seed)
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
        "n": len(bits),
        "size": model.draw_size,
        "config": config_lib.to_plain(config),
        "data_fingerprint": source.fingerprint,
        "clip_fingerprint": clip,
        "versions": versions(),
    }
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    files.atomic_write(workdir / "bits_per_dim.json", text)
    log(
        f"{results['bits_per_dim']:.4f} ± {results['stderr']:.4f} bits per dimension "
        f"(an upper bound) of {len(bits)} images of {model.draw_size} pixels"
    )
    log(f"written: {workdir}/bits_per_dim.json")
    return results


def check_config(config) -> None:
    """Raises UsageError for anything unknown or missing, with the nearest name."""
    config_lib.check_keys(config, KEYS, "config")
    if missing := [key for key in KEYS if key not in config]:
        raise UsageError(f"config lacks {', '.join(missing)}")
    config_lib.check_keys(config.bits_per_dim, ("batch_size",), "config.bits_per_dim")
    for where, value in (
        ("config.count", config.count),
        ("config.bits_per_dim.batch_size", config.bits_per_dim.batch_size),
    ):
        if value < 1:
            raise UsageError(f"{where} must be at least 1, got {value}")
