"""Native exports: UnCLIP.load, with and without hashes that fit what was changed."""

import hashlib
import json

import jax
import numpy as np

from tests.fuzz import extract
from unclip_jax.generation.loading import load_stack


def make(folder):
    """The export of the archive."""
    extract("export", folder)


def open_it(folder):
    """Sums of the parameters, and what every part is."""
    parts = {}
    for kind, part in load_stack(folder).parts.items():
        sums = [float(np.asarray(leaf).sum()) for leaf in jax.tree.leaves(part.params)]
        parts[kind] = [json.dumps(part.config, default=str), *sums]
    return parts


def repair(folder, rng):
    """Three times of four the hashes are made those of the changed files."""
    index = folder / "unclip.json"
    try:
        content = json.loads(index.read_bytes())
        if rng.random() < 0.75:
            for part, entry in content["parts"].items():
                for name in entry["files"]:
                    file = folder / part / name
                    if file.is_file():
                        digest = hashlib.sha256(file.read_bytes()).hexdigest()
                        entry["files"][name] = digest
            index.write_text(json.dumps(content))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        pass  # the index itself was changed
