"""A folder that fills with numbered pictures of one setting, in any number of runs."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.files import read_json, sha256_json, write_json
from unclip_jax.images import save_image

SETTINGS = "settings.json"


class PictureFolder:
    """Pictures 0 ... len(captions) - 1, file by file.

    Files that are there are not drawn again, so that the same command goes on where it
    was stopped; several processes with numbers of their own share the work.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        captions: Sequence[str],
        settings: Mapping[str, Any],
        format: str = "png",
    ):
        """Opens the folder; the first picture makes it, and its settings.json.

        Raises UsageError when it holds pictures of other captions or settings, or of
        no known ones.
        """
        self.folder = pathlib.Path(folder)
        self.captions, self.format = captions, format
        described = {
            **settings,
            "captions": len(captions),
            "captions_sha256": sha256_json(list(captions)),
        }
        self._settings = json.loads(json.dumps(described))
        self._claimed = self._is_ours()

    def path(self, i: int) -> pathlib.Path:
        """Returns where image i is or will be."""
        return self.folder / f"{i:06d}.{self.format}"

    def missing(self) -> list[int]:
        """Numbers of the pictures that are not there."""
        return [i for i in range(len(self.captions)) if not self.path(i).is_file()]

    def chunks(self, size: int, process: int = 0, processes: int = 1) -> Iterator:
        """Slices of `size` that lack pictures: every processes-th, from process."""
        missing = sorted({i // size for i in self.missing()})
        for k in missing:
            if k % processes == process:
                yield slice(k * size, min((k + 1) * size, len(self.captions)))

    def put(self, i: int, image: np.ndarray, metadata: Mapping[str, Any]) -> None:
        """Writes picture i unless it is there."""
        if not self._claimed:
            self._claim()
        if not self.path(i).is_file():
            save_image(self.path(i), image, metadata)

    def _claim(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._is_ours():
            write_json(self.folder / SETTINGS, self._settings)
        self._claimed = True

    def _is_ours(self) -> bool:
        """Whether settings.json is there; UsageError if it has others."""
        file, settings = self.folder / SETTINGS, self._settings
        if not file.is_file():
            if len(self.missing()) < len(self.captions):
                raise UsageError(
                    f"{self.folder} holds images by other hands, with names of those "
                    f"to be drawn, and no {SETTINGS}: choose another --out"
                )
            return False
        written = read_json(file, f"{file} is gone")
        keys = {k for k in {*written, *settings} if written.get(k) != settings.get(k)}
        if keys:
            listed = "; ".join(
                f"{key} was {written.get(key)!r}, is {settings.get(key)!r}"
                for key in sorted(keys)
            )
            raise UsageError(
                f"{self.folder} holds pictures of other settings ({listed}): "
                "choose another --out, or remove it"
            )
        return True
