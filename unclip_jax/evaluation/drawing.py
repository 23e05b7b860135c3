"""Draw the pictures of an evaluation, in batches, keeping each batch at once."""

import datetime
import sys
import time

import numpy as np

from unclip_jax.evaluation.gathering import gather_exactly

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
    """Draw the pictures the store lacks, in batches, with a line of progress."""
    options = {
        key: value
        for key, value in config.generation.items()
        if key in GENERATION_KEYS and value is not None
    }
    batch_size = config.generation.batch_size
    starts = sorted({i // batch_size * batch_size for i in store.missing()})
    # all processes draw each batch together: they must agree what is to be drawn
    seen = gather_exactly(np.array([len(starts), sum(starts)], np.int64))
    if (seen != seen[0]).any():
        raise ValueError(
            f"the processes see different pictures in {store.folder}: the workdir must "
            "lie on a file system that all hosts share"
        )
    if not starts:
        log(f"all {len(captions)} pictures are there already")
        return
    kept = len(captions) - len(store.missing())
    log(
        f"generating {len(captions)} pictures in {store.folder}"
        + (f" ({kept} are there already)" if kept else "")
    )
    clock, drawn, wanted = time.time(), 0, len(store.missing())
    for start in starts:
        stop = min(start + batch_size, len(captions))
        images = model.text2image(
            captions[start:stop], seed=config.seed, first=start, **options
        )
        store.put(start, np.asarray(images))
        drawn = min(drawn + stop - start, wanted)
        _progress(drawn, wanted, time.time() - clock)
    gather_exactly(np.zeros(1, np.int64))  # process 0 has written the last batch


def _progress(done, total, seconds):
    """One line, rewritten in a terminal, appended to a log otherwise."""
    rate = done / max(seconds, 1e-9)
    left = datetime.timedelta(seconds=round((total - done) / rate))
    line = f"generated {done}/{total}  {rate:.2f} images/s  ETA {left}"
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{line:<60}", end=end, file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)
