"""The paper's diffusion prior: 24 layers of width 2048, on a pod.

    python -m unclip_jax.train --config=configs/paper/prior.py \\
        --workdir=runs/paper/prior

1.22B parameters and 0.10B of token embedding. An export draws as table 3 says: 64
ancestral steps with the analytic variance (Bao et al. 2022), whose table
`python -m unclip_jax.estimate_variance` adds to it, and by default the better of
num_candidates=2. Until then ask for --prior_variance=fixed_small.
"""

from configs import common


def get_config():
    """Table 3, column "diffusion prior"."""
    c = common.train_on_pod("prior", steps=600_000, batch_size=4096)
    c.ema_decay = 0.9999
    c.data = common.records("paper")
    # text encoder context: 256 tokens, which the records decide (CLIP reads the same)
    c.model = dict(width=2048, depth=24, num_heads=32, scan_layers=True, remat="full")
    c.diffusion = dict(
        schedule="cosine",
        num_steps=1000,
        prediction="x0",
        sampler="ddpm",  # the last four: how an export draws, unless asked otherwise
        sampling_steps=64,
        variance="analytic",
        guidance=4.0,  # unstated; Karlo's
    )
    c.stage_options = dict(drop_text=0.1, embedding="unit_scaled")
    c.optimizer = common.adamw(
        1.1e-4, 1000, weight_decay=6.0e-2, b1=0.9, b2=0.96, eps=1e-6
    )
    c.evaluators = common.score_prior("paper", every=2000, count=8192)  # 0: never
    return c
