"""Pictures and embeddings changed: noise is added to them, then denoised otherwise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.generation import checks
from unclip_jax.generation.manipulations import Manipulations
from unclip_jax.progress import Progress, StepsOnly, as_progress


class Editing(Manipulations):
    """Methods of UnCLIP that start from a picture rather than from noise.

    `strength`, in (0, 1], is the share of the steps that are taken, the last ones: of
    little strength little changes (SDEdit, Meng et al. 2022).
    """

    def img2img(
        self,
        images,
        prompts: str | Sequence[str] | None = None,
        strength: float = 0.3,
        seed: int = 0,
        prior: Mapping[str, Any] | None = None,
        first: int = 0,
        progress: Progress | bool | None = None,
        **decoder,
    ) -> np.ndarray:
        """Pictures drawn over, as prompts say or as their own embeddings do.

        Args:
          images: N pictures of any sizes, whose center squares are taken.
          prompts: one, or one per picture; without any, each picture's own embedding.
          strength: in (0, 1].
          seed, first, progress: as for `decode`.
          prior: options of `sample_embeddings`, for the prompts' embeddings.
          **decoder: options of `decode`.

        Returns:
          uint8 (N, S, S, 3), S = image_size.

        Raises UsageError for what `decode` refuses.
        """
        checks.fraction("strength", strength)
        progress = as_progress(progress)
        pixels = self.fit_for_decoder(images)
        if prompts is None:
            z = self._embed(images)
        else:
            prompts = _one_each(prompts, len(pixels))
            own = {"seed": seed, "first": first, **(prior or {})}
            z = self.sample_embeddings(prompts, **own, progress=StepsOnly(progress))
        options = dict(seed=seed, first=first, progress=progress, **decoder)
        return self.decode(z, prompts, start=pixels, strength=strength, **options)

    def emb2emb(
        self,
        images,
        prompts: str | Sequence[str],
        strength: float = 0.3,
        seed: int = 0,
        prior: Mapping[str, Any] | None = None,
        first: int = 0,
        progress: Progress | bool | None = None,
        **decoder,
    ) -> np.ndarray:
        """Pictures whose embeddings the prior has changed as the prompts say.

        Nothing but its embedding is kept of a picture. Arguments as for `img2img`; the
        strength is the prior's.
        """
        checks.fraction("strength", strength)
        progress = as_progress(progress)
        z = self._embed(images)
        prompts = _one_each(prompts, len(z))
        own = {"seed": seed, "first": first, **(prior or {})}
        own |= {"start": z, "strength": strength}
        z = self.sample_embeddings(prompts, **own, progress=StepsOnly(progress))
        options = dict(seed=seed, first=first, progress=progress, **decoder)
        return self.decode(z, prompts, **options)


def _one_each(prompts, count):
    """The prompts as a list of `count`; one alone is for all."""
    prompts = checks.prompts(prompts)
    if len(prompts) == 1:
        prompts = prompts * count
    checks.same_length("prompts", prompts, "images", range(count))
    return prompts
