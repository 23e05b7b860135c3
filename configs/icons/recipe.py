"""One decoder per line of docs/recipe.md: the paper's UNet or one change of it.

    python -m unclip_jax.train --config=configs/icons/recipe.py:muon \\
        --workdir=runs/recipe/muon

`python -m benchmarks.recipe` trains them all for as many CPU minutes and scores them.
"""

from configs import common

# name -> (what is said of it, the keys that differ)
FLOW = dict(schedule="flow", loss_space="flow", logit_normal=(0.8, 0.8))
TRANSFORMER = dict(
    backbone="transformer", patch_size=8, width=128, depth=6, num_heads=4
)
ROWS = {
    "paper": ("UNet on patches of 8, x_0, cosine, AdamW, cosine decay", {}),
    "v": ("predicts v", dict(diffusion=dict(prediction="v"))),
    "zero_snr_v": (
        "predicts v, no signal at the last timestep",
        dict(diffusion=dict(prediction="v", schedule="zero_snr:cosine")),
    ),
    "min_snr": ("min-SNR weights, gamma 5", dict(diffusion=dict(min_snr_gamma=5.0))),
    "flow": ("flow, error of the velocity, logit-normal", dict(diffusion=FLOW)),
    "refine": ("pixels refined by convolutions", dict(refine_channels=16)),
    "refine_muon": (
        "pixels refined by convolutions, Muon",
        dict(refine_channels=16, optimizer=dict(name="muon")),
    ),
    "transformer": ("transformer on patches of 8", dict(backbone=TRANSFORMER)),
    "muon": ("Muon", dict(optimizer=dict(name="muon"))),
    "wsd": (
        "constant, then a linear decay over 20%",
        dict(optimizer=dict(schedule="warmup_stable_decay")),
    ),
    "consistency": (
        "consistency training, 4 calls",
        dict(diffusion=dict(consistency=32, sampler="consistency", sampling_steps=4)),
    ),
    "all": (
        "flow and Muon",
        dict(diffusion=FLOW, optimizer=dict(name="muon")),
    ),
}


def get_config(variant="paper"):
    """The row of this name; steps are benchmarks.recipe's."""
    common.check_variant(variant, *ROWS)
    changes = ROWS[variant or "paper"][1]
    c = common.train("decoder", steps=1500, batch_size=64, ema_decay=0.99)
    c.data = common.records("icons", feed="arrays")
    text = dict(text_width=64, text_depth=1, text_heads=2)
    unet = dict(
        channels=128,
        channel_mult=(1,),
        num_res_blocks=2,
        attention_resolutions=(4,),
        head_channels=32,
        patch_size=8,
        learned_sigma=False,
        refine_channels=changes.get("refine_channels", 0),
    )
    c.model = {**changes.get("backbone", unet), **text}
    c.diffusion = dict(prediction="x0", sampling_steps=25, guidance=1.5)
    c.diffusion.update(changes.get("diffusion", {}))
    c.optimizer = common.adamw(2e-3, 50, "cosine", b2=0.99)
    c.optimizer.update(changes.get("optimizer", {}))
    c.checkpoint = dict(every=100_000, keep=1)
    return c
