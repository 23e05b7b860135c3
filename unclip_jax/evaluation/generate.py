"""The images of an evaluation: generated in batches, kept in a folder, read from it.

The folder is one of numbered PNG files, as `sample` fills it: a killed evaluation goes
on, and memory holds one batch however many images there are.
"""

import concurrent.futures
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation.config import EvaluateConfig
from unclip_jax.evaluation.gathering import gather_exactly
from unclip_jax.evaluation.image_sets import Images
from unclip_jax.files import sha256_array
from unclip_jax.generation.picture_folder import PictureFolder
from unclip_jax.images import open_rgb, read_image
from unclip_jax.progress import ProgressLine


class GeneratedImages(Images):
    """The first images of a folder, known by their pixels; see image_sets.py."""

    def __init__(self, folder: PictureFolder, digests: Sequence[str]):
        """Args: digests: sha256 of each image's pixels."""
        self._folder = folder
        super().__init__(len(digests), digests)

    def _image(self, i):
        return open_rgb(self._folder.path(i))


def generate(
    model: Any, folder: PictureFolder, config: EvaluateConfig, log: Callable = print
) -> GeneratedImages:
    """Generates those of the first config.count images that the folder lacks.

    Args:
      model: an UnCLIP.
      folder: the folder, with the captions of these images and perhaps of more.
      config: its count, seed and `generation`.
      log: called with lines of text.
    """
    options = {key: value for key, value in config.options.items() if value is not None}
    about = {"seed": config.seed, "settings": json.dumps(options, sort_keys=True)}
    count, batch_size = config.count, config.batch_size
    digests = _read_digests(folder, count)
    missing = count - len(digests)
    starts = {i // batch_size * batch_size for i in range(count) if i not in digests}
    # all processes draw each batch together: they must agree what is to be drawn
    seen = gather_exactly(np.array([len(starts), sum(starts)], np.int64))
    if (seen != seen[0]).any():
        raise UsageError(
            f"the processes see different images in {folder.folder}: the workdir must "
            "lie on a file system that all hosts share"
        )
    progress = ProgressLine("generating")
    if missing:
        there = f" ({len(digests)} are there already)" if digests else ""
        log(f"generating {count} images in {folder.folder}{there}")
        progress(0, missing)
    else:
        log(f"all {count} images are there already")
    for start in sorted(starts):
        prompts = folder.captions[start : min(start + batch_size, count)]
        images = model.text2image(
            prompts, seed=config.seed, first=start, progress=False, **options
        )
        for i, image in enumerate(np.asarray(images), start):
            if i not in digests:
                digests[i] = sha256_array(image)
                if jax.process_index() == 0:  # every process draws all; one writes
                    metadata = {"prompt": prompts[i - start], "index": i, **about}
                    folder.put(i, image, metadata)
        progress(missing - (count - len(digests)), missing)
    gather_exactly(np.zeros(1, np.int64))  # process 0 has written the last batch
    return GeneratedImages(folder, [digests[i] for i in range(count)])


def _read_digests(folder, count) -> dict[int, str]:
    """{i: sha256 of its pixels} of the images there; broken ones are removed."""
    there = [i for i in range(count) if folder.path(i).is_file()]

    def digest(i):
        try:
            return sha256_array(read_image(folder.path(i)))
        except ValueError as error:
            return error

    digests = {}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for i, found in zip(there, pool.map(digest, there), strict=True):
            if isinstance(found, str):
                digests[i] = found
                continue
            warnings.warn(f"{found}: made again", stacklevel=3)
            if jax.process_index() == 0:
                folder.path(i).unlink(missing_ok=True)
    return digests
