"""Where numbers and previews go: metrics.jsonl, TensorBoard, previews/, W&B.

Weights & Biases is for those who ask for it:

    config.wandb = dict(project="unclip")        # and: pip install wandb

A resumed run goes on with the same curves: wandb_run.txt in its folder names them.
"""

import dataclasses
import json
import math
import pathlib
import uuid
from collections.abc import Container, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.files import atomic_write
from unclip_jax.grids import make_grid
from unclip_jax.images import save_image
from unclip_jax.training.mirror import Mirror

WANDB_ID = "wandb_run.txt"


@dataclasses.dataclass(frozen=True)
class WandbOptions:
    """config.wandb."""

    project: str
    entity: str | None = None  # user or team; None: the default one
    name: str | None = None  # of the run; None: that of its folder
    group: str | None = None


class Writer:
    """Writes the metrics and previews of one run; in the first process only."""

    def __init__(self, workdir, start_step: int = 0, config=None):
        """Rows after `start_step` belong to a future that a crash undid: they go.

        So do the scores of `start_step`, since its evaluators run again. `config`
        (plain) names them, and may ask for Weights & Biases.
        """
        self._file = self._wandb = None
        self._board: Any = None
        if jax.process_index() != 0:
            return
        from tensorboardX import SummaryWriter

        self._mirror = Mirror(workdir, fetch="metrics.jsonl")
        self._workdir = self._mirror.folder
        path = self._workdir / "metrics.jsonl"
        config = config or {}
        if path.is_file():
            _keep_rows(path, start_step, config.get("evaluators", {}))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(self._workdir / "tensorboard"), purge_step=start_step + 1
        )
        if options := check_wandb(config):
            self._wandb = WandbBoard(workdir, options, config)

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
        grid = make_grid(images, columns)
        path = self._workdir / "previews" / f"{step:08d}.png"
        zoom = max(1, 96 // images.shape[1])
        save_image(path, grid.repeat(zoom, 0).repeat(zoom, 1))
        self._board.add_image("preview", grid, step, dataformats="HWC")
        if self._wandb:
            self._wandb.image(step, grid)

    def close(self) -> None:
        """Ends everything that was written."""
        if self._file is None:
            return
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.close()
        self._mirror.close()


class WandbBoard:
    """One run's curves and previews there."""

    def __init__(self, workdir, options: WandbOptions, config: Mapping):
        """`config`: plain, shown with the run."""
        wandb, folder = _wandb(), epath.Path(workdir)
        path = folder / WANDB_ID
        if not path.exists():
            path.write_text(uuid.uuid4().hex[:12])
        try:
            self._run = wandb.init(
                project=options.project,
                entity=options.entity,
                name=options.name or folder.name,
                group=options.group,
                id=path.read_text().strip(),
                resume="allow",
                config=dict(config),
            )
        except Exception as error:  # of its own kinds: no key, no network
            raise UsageError(
                f"config.wandb: {' '.join(str(error).split())}; run `wandb login`, or "
                "set WANDB_MODE=offline"
            ) from error
        # an axis of our own: a run resumed from an older step goes back along it
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        self._run.log({"step": step, **values})

    def image(self, step: int, grid: np.ndarray) -> None:
        """uint8 (H, W, 3)."""
        self._run.log({"step": step, "preview": self._image(grid)})

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


def check_wandb(config) -> WandbOptions | None:
    """The options of config.wandb, which may be missing.

    Raises UsageError for unknown options, or when the package is missing.
    """
    if not config.get("wandb"):
        return None
    options = config_lib.build(WandbOptions, config["wandb"], "config.wandb")
    _wandb()
    return options


def _keep_rows(path: pathlib.Path, last_step: int, evaluators: Container[str]) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            step, names = row["step"], [key.partition("/")[0] for key in row]
        except (ValueError, KeyError):  # the line a crash cut short
            continue
        is_scored_again = step == last_step and any(n in evaluators for n in names)
        if step <= last_step and not is_scored_again:
            kept.append(line + "\n")
    atomic_write(path, "".join(kept))


def _wandb():
    try:
        import wandb  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise UsageError(
            "config.wandb needs the package wandb: `pip install wandb`, or leave "
            "config.wandb out (metrics.jsonl and TensorBoard have everything)"
        ) from error
    return wandb
