"""Config files, with the options that they leave at their defaults."""

from unclip_jax import config as config_lib
from unclip_jax.training.run_config import config_defaults

TOWERS = {
    "image_size": 8,
    "patch_size": 4,
    "vision_width": 8,
    "vision_depth": 1,
    "vision_heads": 2,
    "text_width": 8,
    "text_depth": 1,
    "text_heads": 2,
}  # of a tiny CLIP


def load_complete(path, *sections):
    """The unlocked config of a file, these sections complete; all but model of none."""
    config = config_lib.load(str(path)).unlock()
    known = config_defaults(config)
    for name in sections or known.keys() - {"model", "data", "wandb", "evaluators"}:
        if isinstance(known[name], dict):
            values = config.get(name) or {}
            config[name] = config_lib.with_defaults(values, known[name])
        elif name not in config and not isinstance(known[name], type):
            config[name] = known[name]
    return config
