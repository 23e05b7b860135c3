"""A decoder without convolutions on emoji: a flow that predicts x_0, on patches of 4.

    python -m unclip_jax.train --config=configs/emoji/decoder_transformer.py \
        --workdir=runs/emoji/decoder_transformer

7.6M parameters, for a GPU: 4,500 steps of 256 images take 190 s on an H100
(docs/recipe.md shows what it draws after them).
"""

from configs.emoji import decoder


def get_config():
    """The conditioning of the paper; the backbone and the objective are later ones."""
    c = decoder.get_config()
    c.steps = 4500
    c.batch_size = 256
    c.compute_dtype = "bfloat16"
    c.model = dict(
        backbone="transformer",
        patch_size=4,  # 256 patches
        width=256,
        depth=8,
        num_heads=4,
        text_width=128,
        text_depth=1,
        text_heads=2,
    )
    c.diffusion = dict(
        schedule="flow",
        prediction="x0",
        loss_space="flow",  # the error of the velocity that follows from x_0
        logit_normal=(0.8, 0.8),  # noisier timesteps more often
        sampling_steps=50,
        guidance=2.0,
    )
    c.optimizer = dict(
        learning_rate=1e-3,
        weight_decay=0.01,
        b2=0.95,
        warmup_steps=300,
        schedule="cosine",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.9995
    return c
