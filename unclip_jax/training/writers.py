"""Where numbers and pictures go: metrics.jsonl, TensorBoard, previews/, W&B."""

import json
import math
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from unclip_jax.training import wandb_board
from unclip_jax.training.mirror import Mirror


class Writer:
    """Writes the metrics and previews of one run; in the first process only."""

    def __init__(self, workdir, start_step: int = 0, config=None):
        """Rows after `start_step` belong to a future that a crash undid: they go.

        `config` (plain) may ask for Weights & Biases.
        """
        self._file = self._board = self._wandb = None
        if jax.process_index() != 0:
            return
        from tensorboardX import SummaryWriter

        self._mirror = Mirror(workdir, fetch="metrics.jsonl")
        self._workdir = self._mirror.folder
        path = self._workdir / "metrics.jsonl"
        if path.is_file():
            _keep_rows(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(self._workdir / "tensorboard"), purge_step=start_step + 1
        )
        if options := wandb_board.check(config or {}):
            self._wandb = wandb_board.WandbBoard(workdir, options, config)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row. Numbers that are not finite are null in the file."""
        if self._file is None:
            return
        row = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.scalars(step, values)
        self._mirror.sync()

    def images(self, step: int, images: np.ndarray, columns: int) -> None:
        """A grid of uint8 (N, H, W, 3) pictures, as PNG and to TensorBoard."""
        if self._file is None:
            return
        from PIL import Image

        grid = make_grid(images, columns)
        path = self._workdir / "previews" / f"{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        zoom = max(1, 96 // images.shape[1])
        Image.fromarray(grid.repeat(zoom, 0).repeat(zoom, 1)).save(path)
        self._board.add_image("preview", grid, step, dataformats="HWC")
        if self._wandb:
            self._wandb.image(step, grid)

    def close(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.close()
        self._mirror.close()


def make_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, 3) -> (rows * H, columns * W, 3), white where pictures are missing."""
    n, h, w, c = images.shape
    rows = -(-n // columns)
    blank = np.full((rows * columns - n, h, w, c), 255, images.dtype)
    tiles = np.concatenate([images, blank]).reshape(rows, columns, h, w, c)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)


def _keep_rows(path: pathlib.Path, last_step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # the line a crash cut short
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
