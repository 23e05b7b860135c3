"""The paper's CLIP: ViT-H/16 at 256 pixels, text 1024 x 24, on a pod.

    python -m unclip_jax.train --config=configs/paper/clip.py --workdir=runs/paper/clip

986M parameters (image 633M, text 353M). Radford et al. 2021 where the paper is silent.
A step of SAM takes 3 forward and 2 backward passes on 512 devices, one group on each;
with several groups on a device 5 and 3; stage_options.sam_rho = 0 trains plainly.
"""

from configs import common


def get_config():
    """Appendix C of Ramesh et al. 2022 and table 20 of Radford et al. 2021."""
    c = common.train_on_pod("clip", steps=390_000, batch_size=32_768)
    # steps are unstated; these are 32 epochs of 400M pairs, as Radford et al.
    c.ema_decay = 0.9999
    c.data = common.photos(
        256,
        crop="random",  # squares: Radford et al.'s only augmentation
        tokenizer="openai/clip-vit-large-patch14",  # a public name or a folder
        context_length=256,  # Radford et al.: 77; the paper's prior and decoder: 256
    )
    c.model = dict(
        embed_dim=1024,
        patch_size=16,
        vision_width=1280,
        vision_depth=32,
        vision_heads=16,
        text_width=1024,
        text_depth=24,
        text_heads=16,
        scan_layers=True,
        remat="full",
    )
    # group: examples per replica
    c.stage_options = dict(max_logit_scale=100.0, group=64, sam_rho=0.1)
    c.optimizer = common.adamw(
        3e-4, 2000, "cosine", weight_decay=0.2, b1=0.9, b2=0.98, eps=1e-6
    )
    # On pictures that training never sees; count=0 leaves it out. Also, with ImageNet
    # prepared by TFDS: zero_shot=dict(every=2000, classes={"n01440764": "tench", ...},
    # data=dict(source="tfds", name="imagenet2012", split="validation", template="{}",
    # image_size=256))
    held_out = dict(path="data/validation")
    c.evaluators = dict(retrieval=dict(every=2000, count=8192, data=held_out))
    return c
