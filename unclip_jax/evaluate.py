"""Evaluate an exported model: generate from captions, measure, write a report.

python -m unclip_jax.evaluate --config=configs/icons/eval.py --workdir=runs/icons/eval
    [--config.model=exports/icons] [--config.generation.decoder_guidance=3.0]

Scores pictures made elsewhere with --images, writes the statistics of the reference for
later (and for pytorch-fid) with --make_reference.
"""

from unclip_jax import config

FLAGS = {
    "images": ("", "folder or npz of pictures to score instead of drawing any"),
    "make_reference": ("", "file to write the reference's statistics to, and stop"),
}


def main(args):
    """Run the evaluation of args.config in args.workdir."""
    from unclip_jax.evaluation.runner import evaluate

    evaluate(
        args.config,
        args.workdir,
        images=args.images,
        make_reference=args.make_reference,
    )


if __name__ == "__main__":
    config.run(main, extra_flags=FLAGS)
