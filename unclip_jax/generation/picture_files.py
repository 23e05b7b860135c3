"""Pictures as files: PNG or lossless WebP, with what made them written inside."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image, PngImagePlugin

import unclip_jax

FORMATS = ("png", "webp")
_DESCRIPTION = 0x010E  # EXIF's ImageDescription: in WebP, the metadata as JSON


def save_picture(
    path: str | os.PathLike,
    image: np.ndarray,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes uint8 (H, W, 3) by the suffix of `path`, atomically and without loss.

    `read_metadata` reads the metadata back; in PNG they are text entries.

    Raises ValueError for a picture of another type, or a path that is no *.png, *.webp.
    """
    path = pathlib.Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"{path} should end in {' or '.join(FORMATS)}")
    picture = Image.fromarray(check_picture(image))
    texts = {key: str(value) for key, value in (metadata or {}).items()}
    if kind == "png":
        info = PngImagePlugin.PngInfo()
        for key, value in texts.items():
            info.add_itxt(key, value)  # iTXt: prompts need not be Latin-1
        options = {"pnginfo": info}
    else:
        exif = Image.Exif()
        exif[_DESCRIPTION] = json.dumps(texts)  # ASCII, whatever the prompt
        options = {"exif": exif, "lossless": True}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    picture.save(part, kind, **options)
    part.replace(path)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What `save_picture` wrote into a file beside the picture."""
    with Image.open(path) as image:
        if image.format == "PNG":
            return dict(image.text)
        return json.loads(image.getexif().get(_DESCRIPTION, "{}"))


def describe(seed: int, settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The metadata of a drawn picture: how to draw it again."""
    return {
        **more,
        "seed": seed,
        "settings": json.dumps(settings, sort_keys=True),
        "software": f"unclip_jax {unclip_jax.__version__}, jax {jax.__version__}",
    }


def check_picture(image) -> np.ndarray:
    """Raises ValueError unless it is uint8 (H, W, 3)."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"a picture must be uint8 (H, W, 3), got {image.dtype} {image.shape}"
        )
    return image
