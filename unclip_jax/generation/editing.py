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
            Without a prior that one is kept, and the prompts are the decoder's
            captions.
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
        sides = decoder.get("height"), decoder.get("width")
        pixels = self.fit_for_decoder(images, *sides)
        own = {"seed": seed, "first": first, **(prior or {})}
        z, captions = self._conditions_of(images, prompts, own, progress)
        options = dict(seed=seed, first=first, progress=progress, **decoder)
        return self.decode(z, captions, start=pixels, strength=strength, **options)

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
        prompts = checks.one_each(prompts, len(z))
        own = {"seed": seed, "first": first, **(prior or {})}
        own |= {"start": z, "strength": strength}
        z = self.sample_embeddings(prompts, **own, progress=StepsOnly(progress))
        options = dict(seed=seed, first=first, progress=progress, **decoder)
        return self.decode(z, prompts if self._sees_captions else None, **options)
