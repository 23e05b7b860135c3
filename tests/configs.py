"""Config files, with the options that they leave at their defaults."""

from unclip_jax import config as config_lib
from unclip_jax.training.run_config import config_defaults


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
