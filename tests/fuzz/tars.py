"""Tars of images and captions with the index beside them, as training reads them."""

import io
import os
import tarfile

import numpy as np
from PIL import Image

from unclip_jax.data.sources import BadRecord, make_source

CAPTIONS = ["a cat", "a dog, brown", "une baleine à bosse", "x"]
TIME_NS = 1_700_000_000 * 10**9  # of the tars that the index was made from


def make(folder):
    """Two tars of two samples each, with .txt and .json members, and their index."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    for number, name in enumerate(("a.tar", "b.tar")):
        with tarfile.open(folder / name, "w") as tar:
            for i in (2 * number, 2 * number + 1):
                buffer = io.BytesIO()
                Image.fromarray(pixels[i]).save(buffer, "PNG")
                caption = CAPTIONS[i]
                _add(tar, f"{i}.png", buffer.getvalue())
                _add(tar, f"{i}.txt", caption.encode())
                _add(tar, f"{i}.json", f'{{"caption": "{caption}"}}'.encode())
        os.utime(folder / name, ns=(TIME_NS, TIME_NS))
    open_it(folder)


def repair(folder, rng):
    """Half of the times all tars look as old as the index says, so that it is used."""
    if rng.random() < 0.5:
        for tar in folder.glob("*.tar"):
            os.utime(tar, ns=(TIME_NS, TIME_NS))


def open_it(folder):
    """Captions and pixels of each; None for what is left out."""
    source = make_source(
        {
            "source": "webdataset",
            "path": str(folder),
            "image_size": 8,
            "cache": str(folder),
        }
    )
    examples = []
    for i in range(len(source)):
        try:
            example = source[i]
            examples.append([example["key"], example["caption"], example["image"]])
        except BadRecord as error:
            assert error.key and error.reason
            examples.append(None)
    return examples


def _add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
