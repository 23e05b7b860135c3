"""Finds the guidance that suits an export, and has the export recommend it.

    python -m unclip_jax.tune --model=exports/icons \\
        --records=runs/icons/records/validation --workdir=runs/icons/tune

Draws the captions of the records at each guidance of the decoder, then of the prior,
and takes those whose images, as a set, are most like the true ones in CLIP's features
(within 2%, the ones that fit their captions best).
The images and the curves stay in --workdir; the same command continues where it was
stopped.
"""

from unclip_jax import command_line

FLAGS = {
    "model": (command_line.REQUIRED, "folder of the export, whose config.json changes"),
    "records": (command_line.REQUIRED, "records made by unclip_jax.embed, held out"),
    "workdir": (command_line.REQUIRED, "folder for images and curves"),
    "decoder_guidance": ("1,1.5,2,3,4,8", "scales to try"),
    "prior_guidance": ("1,2,4", "scales to try, with the best of the decoder"),
    "count": (256, "captions per scale; fewer if the records have fewer"),
    "seed": (0, "seed of all noise"),
    "batch_size": (32, "images drawn at a time"),
}


def main(args):
    """Changes what the export args.model recommends."""
    from unclip_jax.evaluation.tuning import tune

    tune(args)


if __name__ == "__main__":
    command_line.run(main, config=False, extra_flags=FLAGS)
