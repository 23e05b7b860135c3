"""A simulated scanner's data: voxels of three subjects -> tokens of photographs.

    python docs/simulate_scanner.py --data=data/photos64 --out=runs/any_voxels/arrays
    python -m unclip_jax.align --config=configs/any/align_voxels.py \\
        --workdir=runs/any_voxels/records
"""

import ml_collections

ARRAYS = "runs/any_voxels/arrays"
SUBJECTS = (0, 1, 2)


def get_config():
    """Each picture was seen by one subject: the others' voxels are missing."""
    c = ml_collections.ConfigDict()
    c.target = dict(path=f"{ARRAYS}/tokens.npy", keys=f"{ARRAYS}/keys.npy")
    c.conditions = {
        f"voxels_{subject}": dict(
            path=f"{ARRAYS}/voxels_{subject}.npy",
            mask=f"{ARRAYS}/mask_{subject}.npy",
            keys=f"{ARRAYS}/keys_{subject}.npy",
            repeats=True,
            missing=True,
        )
        for subject in SUBJECTS
    }
    c.conditions.subject = dict(path=f"{ARRAYS}/subject.npy")
    c.split_names = f"{ARRAYS}/split.npy"
    c.encoder = "EfficientNet-Lite2, 4 x 4 features at 128 pixels, 64 components"
    return c
