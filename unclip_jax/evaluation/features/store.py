"""Features of images, kept by the number of the image.

A killed evaluation goes on where it stopped, and another metric of the same features
costs nothing.  Several processes share the work: process p of P computes the chunks p,
p + P, ... on its own devices, and every one ends with all rows, in order.
"""

import pathlib
import warnings
from typing import Any

import jax
import numpy as np

from unclip_jax import files
from unclip_jax.errors import UsageError
from unclip_jax.evaluation.features import gaussian
from unclip_jax.evaluation.gathering import gather_rows
from unclip_jax.evaluation.metrics.frechet import statistics

CHUNK = 512  # images in a file


class FeatureStore:
    """Keeps features in a folder, in memory, or both.

    Args:
      folder: None keeps nothing on disk.
      chunk: images that are computed and kept at a time.
    """

    def __init__(self, folder=None, chunk=CHUNK):
        self.folder = None if folder is None else pathlib.Path(folder)
        self.chunk = chunk

    def features(self, images, extractor, progress=lambda done, total: None):
        """{layer: float32 (N, D)} of all images.

        Args:
          images: len() and slices that are uint8 (B, H, W, 3); `fingerprint`.
          extractor: image(uint8 (B, H, W, 3)) -> {layer: (B, D)}; `about`, what its
            numbers depend on.
          progress: called with images done and all.
        """
        layers = getattr(extractor, "layers", ())
        depends = [images.fingerprint, extractor.about, list(layers), self.chunk]
        key = files.sha256_json(depends)[:16]
        starts = range(0, len(images), self.chunk)
        mine = starts[jax.process_index() :: jax.process_count()]
        found = []
        for start in mine:
            stop = min(start + self.chunk, len(images))
            found.append(self._chunk(key, start, stop, images, extractor))
            progress(stop, len(images))
        return gather_rows(found, len(images), self.chunk)

    def statistics(self, images, extractor, layer):
        """GaussianStatistics of one layer's features of all images.

        Kept under everything they depend on: the images, how many, crop and resize,
        convention, weights, layer.
        """
        about = {
            "data": images.fingerprint,
            "n": len(images),
            **images.about,
            **extractor.about,
            "layer": layer,
        }

        def compute():
            return statistics(self.features(images, extractor)[layer], "features")

        # several processes might not see the same files, but must compute together
        if self.folder is None or jax.process_count() > 1:
            return gaussian.GaussianStatistics(*compute(), about)
        return gaussian.cached(self.folder / "statistics", about, compute)

    def _chunk(self, key, start, stop, images, extractor):
        path = None
        if self.folder is not None:
            path = self.folder / key / f"features_{start:08d}_{stop:08d}.npz"
            if (kept := self._load(path, stop - start)) is not None:
                return kept
        parts = [extractor.image(piece) for piece in images.pieces(start, stop)]
        features = {
            k: np.concatenate([part[k] for part in parts]).astype(np.float32)
            for k in parts[0]
        }
        for layer, rows in features.items():
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if bad.size:
                raise UsageError(
                    f"the {layer or 'image'} features of image {start + bad[0]} are "
                    f"NaN or infinite ({bad.size} such in {start}..{stop - 1}): look "
                    "at that image and at the weights"
                )
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, Any] = {f"layer_{k}": v for k, v in features.items()}
            files.atomic_write(path, lambda file: np.savez(file, **arrays))
        return features

    def _load(self, path, rows):
        if not path.exists():
            return None
        try:
            with np.load(path) as file:
                kept = {k.removeprefix("layer_"): file[k] for k in file.files}
            if any(len(v) != rows for v in kept.values()) or not kept:
                raise UsageError(f"not {rows} rows")
            return kept
        except files.NUMPY_DAMAGE as error:
            warnings.warn(f"{path} is broken ({error}): made again", stacklevel=4)
            return None
