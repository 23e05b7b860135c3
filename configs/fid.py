"""FID between two sets of pictures, whoever made them.

    python -m unclip_jax.evaluate --config=configs/fid.py --workdir=runs/fid \\
        --images=FOLDER_OR_NPZ --config.reference.images=FOLDER_OR_NPZ

or against statistics (mu and sigma) of pytorch-fid, of OpenAI or of --make_reference:

        --images=FOLDER_OR_NPZ --config.reference.statistics=FILE.npz

The number is that of the program after which the convention is named.
"""

import ml_collections


def get_config():
    """Keys that a comparison of pictures does without are left out."""
    c = ml_collections.ConfigDict()
    c.reference = dict(images="", statistics="")  # one of them
    # for images of several sizes, such as dict(name="shorter_side", size=256)
    c.crop = dict(name="", size=0, generated=True)
    c.extractors = dict(
        inception=dict(
            convention="pytorch-fid",  # or torch-fidelity, clean
            weights="",  # a file; "" downloads it once; "random" for a dry run
            batch_size=32,
        )
    )
    c.metrics = dict(fid=dict(features="inception"))
    return c
