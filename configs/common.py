"""What several configs share. What they leave out has the defaults of TrainConfig."""

import ml_collections


def train(stage, steps, batch_size, **values):
    """The config that trains a stage, with these values."""
    values = dict(stage=stage, steps=steps, batch_size=batch_size, **values)
    return ml_collections.ConfigDict(values)


def train_on_pod(stage, steps, batch_size, fsdp=8):
    """The same in bfloat16, the state divided over `fsdp` devices."""
    c = train(stage, steps, batch_size, compute_dtype="bfloat16")
    c.mesh = dict(data=-1, fsdp=fsdp, tensor=1)
    c.checkpoint = dict(every=2000, keep=3)
    return c


def adamw(learning_rate, warmup_steps, schedule="constant", **options):
    """AdamW with clipped gradients; the paper's warm-up and clipping are unstated."""
    options = dict(warmup_steps=warmup_steps, schedule=schedule, **options)
    return dict(learning_rate=learning_rate, grad_clip_norm=1.0, **options)


def icons(image_size=32, **options):
    """24 nouns x 8 colours x 7 other backgrounds; all but split "train" is held out."""
    options = dict(nouns=24, colours=8, backgrounds=8, **options)
    return dict(source="icons", image_size=image_size, **options)


def emoji(**options):
    """Parquet files of 64x64 images (columns key, image, caption)."""
    return dict(source="parquet", path="data/emoji64", image_size=64, **options)


def photos(size, **options):
    """Tars of images and captions; any other source of docs/data.md does as well."""
    return dict(
        source="webdataset",
        path="data/train",
        cache="runs/paper/index",  # data/ may be read-only
        image_size=size,
        min_size=size,  # smaller ones are left out: enlarged, they would teach blur
        **options,
    )


def records(name, split="train", **options):
    """What NAME/embed.py wrote."""
    return dict(source="records", path=f"runs/{name}/records/{split}", **options)


def score_prior(name, every, count):
    """Evaluators of a prior, on captions that training never sees."""
    data = dict(path=f"runs/{name}/records/validation")
    return dict(prior=dict(every=every, count=count, data=data))


def check_variant(variant, *variants):
    """Refuses a FILE.py:VARIANT that there is not."""
    if variant not in ("", *variants):
        known = " or ".join(map(repr, variants))
        raise ValueError(f"variant {variant!r}: expected {known}, or none")
