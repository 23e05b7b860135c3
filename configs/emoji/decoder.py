"""The decoder on emoji: CLIP image embedding and caption -> 64x64 picture.

    python -m unclip_jax.train --config=configs/emoji/decoder.py \
        --workdir=runs/emoji/decoder
"""

from configs.icons import decoder


def get_config():
    """The paper's UNet and conditioning, on patches of 8: an 8x8 grid.

    As in configs/icons it predicts x0, which coarse grids need.
    """
    c = decoder.get_config()
    c.data.path = "runs/emoji/records/train"
    c.steps = 1500
    c.model.attention_resolutions = (8,)
    c.model.refine_channels = 0
    c.diffusion = dict(prediction="x0")
    return c
