"""The images of an evaluation, generated in batches; each batch is kept at once."""

import numpy as np

from unclip_jax.evaluation.gathering import gather_exactly
from unclip_jax.progress import ProgressLine

# Options of UnCLIP.text2image that a config may set; None leaves the model's own.
GENERATION_KEYS = (
    "prior_guidance",
    "decoder_guidance",
    "num_candidates",
    "prior_steps",
    "decoder_steps",
    "prior_sampler",
    "decoder_sampler",
    "prior_variance",
    "decoder_variance",
    "decoder_guidance_interval",
    "decoder_guidance_rescale",
    "dynamic_threshold",
    "eta",
    "prior",
    "temperature",
    "top_k",
    "top_p",
    "dot_quantile",
)


def generate(model, captions, store, config, log=print):
    """Generates the images that the store lacks, in batches, each kept at once."""
    options = {
        key: value
        for key, value in config.generation.items()
        if key in GENERATION_KEYS and value is not None
    }
    batch_size, missing = config.generation.batch_size, store.missing()
    starts = sorted({i // batch_size * batch_size for i in missing})
    # all processes draw each batch together: they must agree what is to be drawn
    seen = gather_exactly(np.array([len(starts), sum(starts)], np.int64))
    if (seen != seen[0]).any():
        raise ValueError(
            f"the processes see different images in {store.folder}: the workdir must "
            "lie on a file system that all hosts share"
        )
    if not starts:
        log(f"all {len(captions)} images are there already")
        return
    there = len(captions) - len(missing)
    log(
        f"generating {len(captions)} images in {store.folder}"
        + (f" ({there} are there already)" if there else "")
    )
    progress, total = ProgressLine("generating"), len(missing)
    progress(0, total)
    for count, start in enumerate(starts, start=1):
        stop = min(start + batch_size, len(captions))
        images = model.text2image(
            captions[start:stop], seed=config.seed, first=start, **options
        )
        store.put(start, np.asarray(images))
        progress(min(count * batch_size, total), total)
    gather_exactly(np.zeros(1, np.int64))  # process 0 has written the last batch
