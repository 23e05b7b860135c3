"""The decoder with what came after the paper, at its scale: see docs/recipe.md.

    python -m unclip_jax.train --config=configs/modern/decoder.py \\
        --workdir=runs/modern/decoder

A transformer over patches of 4 pixels in place of the UNet, with its conditioning: x_0
predicted, the error of the velocity trained on, Muon, averages of any length later.
`decoder.py:few_steps` goes on from it, for a decoder that draws in 4 calls.

Nobody has trained it: what each part gives was measured on small models, and learning
rate, batch and steps are the paper's.
"""

from configs import common
from configs.paper import decoder


def get_config(variant=""):
    """configs/paper/decoder.py, but for the image tower, objective and optimizer."""
    common.check_variant(variant, "few_steps")
    c = decoder.get_config()
    c.model = dict(
        backbone="transformer",
        patch_size=4,  # 256 patches
        width=2048,
        depth=40,
        num_heads=32,
        num_clip_tokens=4,
        text_width=2048,
        text_depth=24,
        text_heads=32,
        scan_layers=True,
        remat=True,
    )
    c.diffusion = dict(
        schedule="flow",
        prediction="x0",
        loss_space="flow",  # the error of the velocity that follows from x_0
        logit_normal=(0.8, 0.8),  # noisier timesteps more often
        sampling_steps=50,
        guidance=2.0,
    )
    modern_training(c)
    if variant == "few_steps":
        c.steps = 100_000
        c.checkpoint.keep_every = 10_000
        c.init_from = "exports/modern"
        c.diffusion = dict(
            schedule="flow",
            prediction="x0",
            consistency=64,
            sampler="consistency",
            sampling_steps=4,
            guidance=1.0,
        )
    return c


def modern_training(c):
    """Muon, a decay at the end, and averages of which `export` makes any other."""
    c.optimizer.update(name="muon", schedule="warmup_stable_decay")
    c.ema_profiles = (0.05, 0.1)
    c.checkpoint.keep_every = 40_000  # whole checkpoints, with the optimizer's state
