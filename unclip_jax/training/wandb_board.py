"""Weights & Biases, for those who ask for it.

    config.wandb = dict(project="unclip")        # and: pip install wandb

A resumed run goes on with the same curves: wandb_run.txt in the run's folder names
them.
"""

import dataclasses
import uuid
from collections.abc import Mapping

import numpy as np
from etils import epath

from unclip_jax import config as config_lib

ID_FILE = "wandb_run.txt"


@dataclasses.dataclass(frozen=True)
class Options:
    """config.wandb."""

    project: str
    entity: str | None = None  # user or team; None: the default one
    name: str | None = None  # of the run; None: that of its folder
    group: str | None = None


def check(config) -> Options | None:
    """The options of config.wandb, which may be missing.

    Raises ValueError for unknown options, or when the package is missing.
    """
    if not config.get("wandb"):
        return None
    options = config_lib.build(Options, config["wandb"], "config.wandb")
    _package()
    return options


class WandbBoard:
    """One run's curves and previews there."""

    def __init__(self, workdir, options: Options, config: Mapping):
        """`config`: plain, shown with the run."""
        wandb, folder = _package(), epath.Path(workdir)
        path = folder / ID_FILE
        if not path.exists():
            path.write_text(uuid.uuid4().hex[:12])
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            name=options.name or folder.name,
            group=options.group,
            id=path.read_text().strip(),
            resume="allow",
            config=dict(config),
        )
        # an axis of our own: a run resumed from an older step goes back along it
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, grid: np.ndarray) -> None:
        """uint8 (H, W, 3)."""
        self._run.log({"step": step, "preview": self._image(grid)})

    def close(self) -> None:
        self._run.finish()


def _package():
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "config.wandb needs the package wandb: `pip install wandb`, or leave "
            "config.wandb out (metrics.jsonl and TensorBoard have everything)"
        ) from error
    return wandb
