"""What `python -m unclip_jax.estimate_variance` does: tables for analytic variance.

A table is the mean, over examples drawn from records, of what diffusion.analytic asks
for. Example i and its noise depend on (seed, i) only, so that a table of few examples
is continued to one of many.
"""

import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.evaluation import records
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.estimation import spread_timesteps, square_epsilon
from unclip_jax.interop import native
from unclip_jax.progress import ProgressLine, Within

PARTS = ("prior", "decoder")
SAVE_EVERY = 60  # seconds between saves of a table that is not finished


def estimate_variance(args: types.SimpleNamespace, log: Callable = print) -> None:
    """Adds tables to the export args.model.

    Args:
      args: the flags of unclip_jax.estimate_variance.
      log: called with a sentence per part.

    Raises:
      UsageError, FileNotFoundError: what was wrong with the flags, an export in another
        format than native, records of another CLIP.
    """
    for flag in ("count", "timesteps", "batch_size"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag} must be at least 1, got {getattr(args, flag)}")
    have = native.read_index(args.model)["parts"]
    asked = args.parts.split(",")
    if unknown := [part for part in asked if part not in PARTS]:
        raise UsageError(f"--parts {unknown[0]!r}: expected some of {','.join(PARTS)}")
    parts = [part for part in asked if part in have]
    if not parts:
        raise native.missing_part(args.model, asked[0], [*have])
    source = records.open_records({"source": "records", "path": args.records})
    if "decoder" in parts and source.image_size is None:
        raise UsageError(f"the records in {args.records} have no images: --parts=prior")
    options = {"dtype": args.dtype, "batch_size": args.batch_size}
    model = UnCLIP.load(args.model, parts=("clip", *parts), **options)
    records.check_clip(source, args.records, model, args.model)
    for kind in parts:
        timesteps = spread_timesteps(model.stack.part(kind), args.timesteps)
        table = _estimate(model, kind, source, timesteps, args)
        log(
            f"{kind}: from {table['examples']} examples at {args.timesteps} timesteps; "
            f"draw with --{kind}_sampler=ddpm --{kind}_variance=analytic"
        )


def _estimate(model, kind, source, timesteps, args):
    """The table of a part, which is also in the export then."""
    table: dict[str, Any] = {
        "timesteps": timesteps,
        "seed": args.seed,
        "data_fingerprint": source.fingerprint,
        "examples": 0,
        "means": [0.0] * len(timesteps),
    }
    earlier = native.read_analytic(args.model, kind)
    about = ("timesteps", "seed", "data_fingerprint")
    if earlier and all(earlier[key] == table[key] for key in about):
        table = earlier
    random = np.random.default_rng(args.seed)
    chosen = random.integers(len(source), size=args.count)  # a prefix of any longer one
    progress, saved = ProgressLine(kind), time.monotonic()
    begun = table["examples"]
    for start in range(begun, args.count, args.batch_size):
        rows = chosen[start : start + args.batch_size]
        examples = [source[int(i)] for i in rows]
        images = None
        if kind == "decoder":
            images = model.fit_for_decoder([example["image"] for example in examples])
        each = square_epsilon(
            model,
            kind,
            [example["caption"] for example in examples],
            np.stack([example["clip_image"] for example in examples]),
            images,
            timesteps,
            args.seed,
            start,
            Within(progress, start - begun, args.count - begun),
        )
        done = start + len(rows)
        total = start * np.array(table["means"]) + each.sum(0, dtype=np.float64)
        table |= {"means": (total / done).tolist(), "examples": done}
        if done == args.count or time.monotonic() - saved > SAVE_EVERY:
            native.write_analytic(args.model, kind, table)
            saved = time.monotonic()
    return table
