"""Measures an export or a folder of images, and writes a report.

    python -m unclip_jax.evaluate --config=configs/icons/eval.py \\
        --workdir=runs/icons/eval --config.generation.decoder_guidance=3.0

Scores images made elsewhere with --images, writes the statistics of the reference for
later (and for pytorch-fid) with --make_reference. On several hosts start it on each of
them, with a workdir that all of them see; the numbers are those of one host.
"""

from unclip_jax import command_line

FLAGS = {
    "images": ("", "folder or npz of images to score instead of generating any"),
    "make_reference": ("", "file to write the reference's statistics to, and stop"),
}


def defaults(config):
    """What EvaluateConfig and the source have for keys that `config` leaves out."""
    from unclip_jax.evaluation.config import config_defaults

    return config_defaults(config)


def main(args):
    """Runs the evaluation of args.config in args.workdir."""
    from unclip_jax.evaluation.runner import evaluate

    options = {"images": args.images, "make_reference": args.make_reference}
    evaluate(args.config, args.workdir, **options)


if __name__ == "__main__":
    command_line.run(main, defaults=defaults, extra_flags=FLAGS, distributed=True)
