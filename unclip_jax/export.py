"""Exports a trained stage from its checkpoint.

    python -m unclip_jax.export --run=runs/icons/clip    --out=exports/icons
    python -m unclip_jax.export --run=runs/icons/prior   --out=exports/icons
    python -m unclip_jax.export --run=runs/icons/decoder --out=exports/icons

An export is one folder that holds all stages, each added by its own command. The run
may be in a bucket (gs://...) and of any mesh; tensors are read and written one by one.
What it recommends for sampling is as the training config says (docs/sampling.md),
unless a flag says otherwise. The same command with --verify reads the export back and
compares every tensor with the checkpoint. --run may also be a file with a prior of
DALLE2-pytorch (docs/any_prior.md).
"""

from unclip_jax import command_line
from unclip_jax.errors import UsageError
from unclip_jax.interop import recommended

FLAGS = {
    "run": (
        command_line.REQUIRED,
        "folder of a run (a --workdir of unclip_jax.train), or DALLE2-pytorch's file",
    ),
    "out": (command_line.REQUIRED, "folder of the export; other stages in it stay"),
    "format": (
        "native",
        "native, or what is to load it: diffusers, whose pipelines of latents take "
        "kandinsky or stable_unclip; lora: adapters alone, in diffusers' names; for a "
        "CLIP also transformers or open_clip",
    ),
    "dtype": ("float32", "of the files: float32, bfloat16 or float16"),
    "weights": (
        "ema",
        "ema: the moving average; params: the raw parameters of the step",
    ),
    "ema_std": (
        float,
        "relative standard deviation of the average instead, such as 0.1, made of "
        "config.ema_profiles of the checkpoints that the run kept",
    ),
    "step": (int, "step of the checkpoint (default the newest)"),
    **recommended.flags(),
    "guide": (
        False,
        "as the weaker model that guides the decoder in --out (autoguidance): of an "
        "earlier --step, or another --ema_std",
    ),
    "verify": (False, "write nothing: compare --out with the run"),
}


def main(args):
    """Writes one part of an export, or compares it with the run."""
    from unclip_jax.interop import dalle2_pytorch, lazy
    from unclip_jax.interop.export import compare, export, merged
    from unclip_jax.training.checkpoint import open_run
    from unclip_jax.training.checksums import tree_checksum
    from unclip_jax.training.posthoc_ema import open_posthoc

    if dalle2_pytorch.is_dalle2_pytorch(args.run):
        print(dalle2_pytorch.export(args.run, args.out, args.dtype))
        return
    if args.ema_std is None:
        shapes, read, meta = open_run(args.run, args.weights, args.step)
    else:
        if args.weights != "ema":
            raise UsageError(f"--weights={args.weights} is no average: no --ema_std")
        shapes, read, meta, error = open_posthoc(args.run, args.ema_std, args.step)
        print(f"an average of std {args.ema_std:g}, within {error:.1%} of its profile")
    params = lazy.tree(shapes, read)
    if args.format != "lora":
        params = merged(params, meta, tree_checksum)
    options = params, meta, args.run, args.out, args.format, args.dtype
    names = recommended.flags()
    values = recommended.Recommended(**{name: getattr(args, name) for name in names})
    if args.verify and args.guide:
        raise UsageError("--verify looks at parts that are not there to --guide others")
    print(compare(*options) if args.verify else export(*options, values, args.guide))


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
