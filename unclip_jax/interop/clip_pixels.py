"""How a public CLIP wants its images prepared: read, and followed or refused by name.

Ours scales an image's shorter side to the model's size (bicubic), takes the centre, and
subtracts a mean and divides by a standard deviation per channel: what OpenAI's and most
CLIPs do. A model that was trained on other images is refused: its embeddings of ours
would be off without a word.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.files import read_json
from unclip_jax.models.clip import OPENAI_MEAN, OPENAI_STD

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # of transformers 5, with the former inside
BICUBIC = 3  # of Pillow
OURS = "the shorter side scaled to the model's size (bicubic), then the centre"
# What says nothing about pixels, or nothing about RGB images.
_ELSEWHERE = (
    "feature_extractor_type",
    "image_processor_type",
    "processor_class",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
)


def read_preprocessor(
    folder: str | os.PathLike, image_size: int, required: bool = False
) -> dict[str, tuple[float, ...]]:
    """Mean and std of a transformers folder; OpenAI's where it has no such file.

    Args:
      folder: with a preprocessor_config.json, or the processor_config.json of
        transformers 5.
      image_size: side of the images that the model takes.
      required: whether the file must be there.

    Returns:
      {"image_mean", "image_std"}, fields of models.CLIP.

    Raises:
      FileNotFoundError: it is `required` and missing.
      UsageError: images that are prepared otherwise than ours are.
    """
    file, config = _find(pathlib.Path(folder))
    if config is None and required:
        raise FileNotFoundError(
            f"{pathlib.Path(folder) / PREPROCESSOR} is missing: the folder is not "
            "complete, and how the image encoder wants its images would be a guess"
        )
    if config is None:
        return {"image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}
    known = ("size", "crop_size", "resample", "rescale_factor", "image_mean")
    known += ("default_to_square", "do_convert_rgb")
    switches = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    stated = {k: v for k, v in config.items() if v is not None and v is not False}
    stated = {k: v for k, v in stated.items() if not k.startswith("_")}
    config_lib.check_keys(
        stated, {*known, *switches, "image_std", *_ELSEWHERE}, str(file)
    )
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_convert_rgb"):
        value = config.get(name, True)
        _require(file, name, True if value is None else value, True)
    size = config.get("size", image_size)
    if not isinstance(size, Mapping):  # a mapping says by itself which sides it means
        square = bool(config.get("default_to_square"))
        _require(file, "default_to_square", square, False)
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else size
    _require(file, "size", shortest, image_size, size)
    crop = config.get("crop_size", image_size)
    sides = (
        (crop.get("height"), crop.get("width")) if isinstance(crop, Mapping) else crop
    )
    square = (image_size, image_size) if isinstance(crop, Mapping) else image_size
    _require(file, "crop_size", sides, square, crop)
    _require(file, "resample", config.get("resample", BICUBIC), BICUBIC)
    factor = config.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(
        factor, 1 / 255, rel_tol=1e-6
    ):
        _require(file, "rescale_factor", factor, 1 / 255)
    if config.get("do_normalize", True) is False:
        return {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    return {
        name: _channels(file, name, config.get(name), usual)
        for name, usual in (("image_mean", OPENAI_MEAN), ("image_std", OPENAI_STD))
    }


def read_preprocess_cfg(
    config: Mapping[str, Any], image_size: int, file: str
) -> dict[str, tuple[float, ...]]:
    """Mean and std of OpenCLIP's preprocess_cfg; see `read_preprocessor`.

    Args:
      config: the section of open_clip_config.json, possibly empty.
      image_size: side of the images that the model takes.
      file: whose it is, for messages.
    """
    known = ("size", "mode", "mean", "std", "interpolation", "resize_mode")
    config_lib.check_keys(config, {*known, "fill_color"}, f"{file}: preprocess_cfg")
    size = config.get("size") or image_size
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    _require(file, "size", sides, (image_size, image_size), size)
    for name, only in (
        ("mode", "RGB"),
        ("interpolation", "bicubic"),
        ("resize_mode", "shortest"),  # fill_color is of "longest" alone
    ):
        _require(file, name, config.get(name) or only, only)
    return {
        "image_mean": _channels(file, "mean", config.get("mean"), OPENAI_MEAN),
        "image_std": _channels(file, "std", config.get("std"), OPENAI_STD),
    }


def _find(folder):
    """(the file, what it says of images), or (None, None)."""
    file = folder / PREPROCESSOR
    if file.is_file():
        return file, read_json(file, "")
    file = folder / PROCESSOR
    if file.is_file():
        inner = read_json(file, "").get("image_processor")
        if inner is not None:
            return file, _mapping(file, inner)
    return None, None


def _mapping(file, value):
    if not isinstance(value, Mapping):
        raise UsageError(f"{file}: expected settings by name, got {value!r}")
    return value


def _require(file, name, value, only, shown=None):
    if value != only:
        shown = value if shown is None else shown
        raise UsageError(
            f"{file}: {name} is {shown!r}, but images are prepared here with {only!r} "
            f"({OURS}): the embeddings would differ. If yours are square, of RGB and "
            "of the model's size already, this changes nothing: remove the entry"
        )


def _channels(file, name, value, usual):
    if value is None:
        return usual
    numbers = value if isinstance(value, list | tuple) else [value]
    finite = all(
        isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
        for x in numbers
    )
    if len(numbers) != 3 or not finite or (name.endswith("std") and min(numbers) <= 0):
        raise UsageError(f"{file}: {name} is {value!r}; expected three numbers")
    return tuple(float(x) for x in numbers)
