"""What was drawn, as PNG files that say how."""

import pathlib
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.generation.cli.command import describe
from unclip_jax.images import enlarge, read_image, save_image

KEPT = 3600.0  # seconds
EDITED = 512  # pixels of a picture to brush over, at least about that many


class Results:
    """Writes drawings into a temporary folder, which ends with the page."""

    def __init__(self, model_name: str):
        self._model_name = model_name
        self._folder = tempfile.TemporaryDirectory(prefix="unclip_page_")

    def save(
        self,
        images: Sequence[np.ndarray],
        name: str,
        seed: int,
        settings: Mapping[str, Any],
        captions: Sequence[str],
    ) -> list[str]:
        """Writes images (H, W, 3); returns their files, one per caption.

        Args:
          images: N drawings.
          name: what the files are called after.
          seed: of the drawings.
          settings: how they were drawn, JSON-able.
          captions: the prompt of each, or what else it shows.
        """
        root = pathlib.Path(self._folder.name)
        for old in root.iterdir():  # Gradio has copies of its own
            if time.time() - old.stat().st_mtime > KEPT:
                shutil.rmtree(old, ignore_errors=True)
        folder = pathlib.Path(tempfile.mkdtemp(dir=root))
        stem = re.sub(r"\W+", "_", name).strip("_")[:40] or "picture"
        settings = {"model": self._model_name, **settings}
        files = []
        for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
            path = folder / f"{stem}_seed{seed}_{i}.png"
            save_image(path, image, describe(seed, settings, prompt=caption, index=i))
            files.append(str(path))
        return files

    def enlarged(self, file: str) -> dict[str, Any]:
        """An image as the editor takes it, large enough for its brush."""
        image = read_image(file)
        image = enlarge(image, max(1, EDITED // min(image.shape[:2])))
        path = pathlib.Path(tempfile.mkdtemp(dir=self._folder.name)) / "picture.png"
        save_image(path, image)
        return {"background": str(path), "layers": [], "composite": str(path)}
