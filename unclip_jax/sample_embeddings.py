"""Draws embeddings from an exported embedding prior, and scores them.

    python -m unclip_jax.sample_embeddings --prior=exports/any \\
        --data=runs/any/records/validation --out=runs/any/samples --evaluate

The conditions are those of a folder that `python -m unclip_jax.align` wrote. An
interrupted command goes on where it was. --evaluate compares with the targets there:
cosines, retrieval and two-way identification, and with --n=2 diversity; --train names
the training split, for how much of it is memorized.
"""

from unclip_jax import command_line
from unclip_jax.generation import options

FLAGS = {
    "prior": (command_line.REQUIRED, "folder of an export with an embedding prior"),
    "data": (command_line.REQUIRED, "folder of aligned arrays, a split"),
    "out": (command_line.REQUIRED, "folder of the samples"),
    "n": (0, "draws per row, on an axis of their own; 0: one, without that axis"),
    "seed": (0, "seed of all randomness"),
    "count": (0, "rows, the first of the data; 0: all"),
    **{
        name: flag
        for name, flag in options.flags(options.EmbeddingOptions).items()
        if name != "strength"  # there is nothing to start from
    },
    "batch_size": (256, "embeddings that are drawn at a time"),
    "dtype": ("float32", "of the computation: float32 or bfloat16"),
    "evaluate": (False, "score the samples: scores.json, and a table"),
    "train": (str, "with --evaluate, folder of the arrays the prior learnt from"),
    "groups": (str, "with --evaluate, a class of the data: scores of each, as well"),
}


def main(args):
    """Draws and scores."""
    from unclip_jax.errors import UsageError
    from unclip_jax.evaluation import embeddings

    for name in ("train", "groups"):
        if getattr(args, name) and not args.evaluate:
            raise UsageError(f"--{name} is for --evaluate")
    asked = {n: getattr(args, n) for n in ("guidance", "steps", "sampler")}
    names = ("prior", "data", "n", "seed", "count", "batch_size", "dtype")
    config = embeddings.SampleConfig(
        **{name: getattr(args, name) for name in names},
        options=options.EmbeddingOptions(**asked),
    )
    embeddings.sample(config, args.out)
    if args.evaluate:
        embeddings.score(config, args.out, args.train or "", args.groups or "")


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
