"""A config file and flags as `train` reads them, and the files of a run's folder.

The config file builds its ConfigDict from config.json, the command line is flags.json:
mutations are then configs and flags that somebody could have written.
"""

import contextlib
import dataclasses
import io
import json

import jax

from tests.fuzz import extract
from unclip_jax import command_line, stages
from unclip_jax import config as config_lib
from unclip_jax.data.sources import make_source
from unclip_jax.data_spec import DataSpec
from unclip_jax.parallel.batches import check_batch_size
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.train import defaults
from unclip_jax.training import run_folder
from unclip_jax.training.optimizer import make_optimizer
from unclip_jax.training.run_config import read_config
from unclip_jax.training.state import abstract_state

# A message about a value may name its key or flag instead of the file.
NAMES = ("config", "flag", "--", "sharding rule")
PROGRAM = """import json, pathlib, ml_collections

def get_config():
    path = pathlib.Path(__file__).with_name("configs") / "config.json"
    return ml_collections.ConfigDict(json.loads(path.read_text()))
"""
FLAGS = ["--config.optimizer.learning_rate=2e-3", "--config.model.text_depth=2"]
FLAGS += ["--config.data.split=validation", "--config.mesh.fsdp=1"]
CONFIG = {
    "stage": "clip",
    "steps": 10,
    "batch_size": 8,  # for the eight devices of the tests, too
    "data": {"source": "icons", "image_size": 32, "seed": 3},
    "model": {
        "embed_dim": 8,
        "patch_size": 8,
        "vision_width": 16,
        "vision_depth": 1,
        "vision_heads": 2,
        "text_width": 16,
        "text_depth": 1,
        "text_heads": 2,
    },
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2, "schedule": "cosine"},
    "sharding_rules": [[".*kernel", ["fsdp", None]]],
    "checkpoint": {"every": 5, "keep": 2},
    "preview": {"every": 5, "count": 4},
    "evaluators": {"retrieval": {"every": 5, "count": 8}},
    "watchdog": {},
    "wandb": {},
}
SPEC = DataSpec(image_size=32, vocab_size=600, context_length=8, eot_id=599)


def make(folder):
    """The config, the flags, and the folder of the run in the archive."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "flags.json").write_text(json.dumps(FLAGS))
    folder.with_name("config_file.py").write_text(PROGRAM)
    old = folder.with_name("prior")
    extract("prior", old)
    (folder / "run").mkdir()
    for name in ("config.json", "status.json"):
        (folder / "run" / name).write_bytes((old / name).read_bytes())


def open_it(folder):
    """What the command would train, and what the run's folder says."""
    configs, text = [], io.StringIO()
    program = f"--config={folder.with_name('config_file.py')}"
    with contextlib.redirect_stderr(text), contextlib.suppress(SystemExit):
        command_line.run(
            lambda args: configs.append(_as_train(args.config)),
            defaults=defaults,
            argv=["train", program, "--workdir=x", *_flags(folder)],
        )
    if not configs:
        raise ValueError(text.getvalue())
    before = json.loads((folder.with_name("prior") / "config.json").read_text())
    run_folder.claim(folder / "run", before)  # as the same command, started again
    saved, status = (
        f(folder / "run") for f in (run_folder.read_config, run_folder.read_status)
    )
    run_folder.note_saved(folder / "run", status["step"])
    return [*configs, saved, status]


def _flags(folder) -> list[str]:
    try:
        flags = json.loads((folder / "flags.json").read_text())
        assert all(isinstance(flag, str) for flag in list(flags))
    except (ValueError, TypeError, AssertionError, OSError, RecursionError) as error:
        raise ValueError("flags.json holds no flags") from error
    return flags


def _as_train(config) -> list:
    """What train reads and builds before it opens the data, and the parameters."""
    config = read_config(config)
    tx = make_optimizer(config.optimizer, config.steps)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    check_batch_size(config.batch_size, mesh, config.grad_accum)
    source = make_source(config.data)
    stage = stages.make_stage(config, SPEC)
    state = abstract_state(stage, tx, mesh, config.sharding_rules)
    made = str(stage.export()), str(jax.tree.map(lambda a: a.shape, state))
    return [config_lib.to_plain(config), len(source), *made]
