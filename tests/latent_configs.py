"""The smallest configs of latent decoders, as Kandinsky's and as Stable unCLIP's."""

KANDINSKY = {
    "model": {
        "image_channels": 4,
        "caption": "none",
        "clip_norm": True,
        "num_clip_tokens": 2,
        "channels": 8,
        "channel_mult": (1,),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "head_channels": 4,
        "norm_groups": 4,
        "text_width": 8,
    },
    "diffusion": {"schedule": "linear:0.00085:0.012", "spacing": "leading"},
    "stage_options": {"embedding": "raw", "null_embedding": "zero_image"},
}
STABLE = {
    "model": {
        "backbone": "stable_diffusion",
        "channels": 8,
        "channel_mult": (1,),
        "num_heads": (2,),
        "mid_heads": 2,
        "num_res_blocks": 1,
        "norm_groups": 4,
    },
    "diffusion": {
        "schedule": "scaled_linear",
        "prediction": "v",
        "to_x0": False,
        "augmentation": {"schedule": "cosine", "num_steps": 50},
    },
    "stage_options": {"embedding": "raw"},
}


def resized(config, **model):
    """The config with other fields of the model."""
    return {**config, "model": {**config["model"], **model}}
