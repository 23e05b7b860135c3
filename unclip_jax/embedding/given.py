"""Records from image embeddings that exist already; CLIP makes those of the texts."""

import itertools
from collections.abc import Iterator

import numpy as np

from unclip_jax.data.sources import BadRecord
from unclip_jax.errors import UsageError

SAME_CLIP = 0.98  # mean cosine; half precision stays above 0.999, another CLIP near 0


def examples(source, indices, clip, skipped, progress) -> Iterator[dict]:
    """As runner's, of a source that has "clip_image" instead of "image".

    Raises UsageError when the source's text embeddings are not those of this CLIP.
    """
    if source.embed_dim != clip.part.module.embed_dim:
        raise UsageError(
            f"the embeddings have {source.embed_dim} numbers, config.clip makes "
            f"{clip.part.module.embed_dim}: they are not of this CLIP"
        )
    readable = _readable(source, indices, skipped)
    count = 0
    while batch := list(itertools.islice(readable, clip.batch_size)):
        tokens = clip.tokenizer.encode([example["caption"] for example in batch])
        made = {k: np.asarray(rows) for k, rows in clip.embed_text(tokens).items()}
        if "clip_text" in batch[0].keys() & made.keys():
            _check(np.stack([e["clip_text"] for e in batch]), made["clip_text"])
        for i, example in enumerate(batch):
            ours = {name: rows[i] for name, rows in made.items()}
            yield {**example, "tokens": tokens[i], **ours}
        progress.add(len(batch))
        count += len(batch)
    progress.add(len(indices) - count)


def _readable(source, indices, skipped):
    for i in indices:
        try:
            yield source[i]
        except BadRecord as bad:
            skipped.append(bad)


def _check(theirs, ours) -> None:
    ours = ours[: len(theirs)]  # without padding
    norms = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    cosine = float(((theirs * ours).sum(1) / norms.clip(1e-12)).mean())
    if cosine < SAME_CLIP:
        raise UsageError(
            f"the text embeddings are not those of config.clip: mean cosine "
            f"{cosine:.3f}, expected at least {SAME_CLIP}; use the CLIP that "
            "clip-retrieval ran, or check that rows and captions belong together"
        )
