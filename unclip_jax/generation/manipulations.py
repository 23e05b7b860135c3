"""What can be done with the latents (z_i, x_T) of pictures (paper, section 3).

z_i is the CLIP image embedding, x_T the noise that DDIM inversion finds for the decoder
conditioned on z_i. Pictures come as uint8 of any sizes: their centre squares are scaled
to what CLIP and the decoder take.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.generation import checks
from unclip_jax.generation.core import Core
from unclip_jax.generation.options import DecoderOptions, make
from unclip_jax.generation.resolve import resolve_options
from unclip_jax.generation.slerp import rotate, slerp
from unclip_jax.images import fit
from unclip_jax.progress import Progress, StepsOnly, as_progress

NOISES = ("inverted", "shared")
INVERTED = {"guidance": 1.0, "steps": 250}  # the defaults with inverted noise
SEEN = ("hint", "height", "width")  # of `decode`'s arguments, the inversion's too


class Manipulations(Core):
    """Methods of UnCLIP that are made of its encoders, `decode` and `invert_pixels`.

    `guidance`, `steps`, `seed`, `eta`, `first` and `progress` mean what they do for
    `decode`, and so do `guidance_interval`, `guidance_rescale` and `dynamic_threshold`,
    which every method that draws takes as `**decoder`; inversion never sees these, but
    `hint`, `height` and `width`, which are such options too.
    `corrections` are of the inversion: 1 doubles its cost and makes it nearly exact
    without guidance (docs/sampling.md).
    Pictures come back as uint8 (..., S, S, 3), S = image_size.
    """

    def zero_shot(
        self, images, labels: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> np.ndarray:
        """Probabilities (N, labels) of the labels for images (Radford et al. 2021).

        A label's text embedding is the mean of its unit embeddings in the templates,
        e.g. "a photo of a {}". Raises UsageError for a template without "{}".
        """
        labels, templates = checks.prompts(labels), checks.prompts(templates)
        for template in templates:
            if "{}" not in template:
                raise UsageError(f"template {template!r} has no {{}} for the label")
        texts = [t.replace("{}", label) for label in labels for t in templates]
        text = _unit(self.encode_text(texts, progress=False))
        text = text.reshape(len(labels), len(templates), -1).mean(1)
        cosine = _unit(self.encode_image(images, progress=False)) @ _unit(text).T
        clip = self.stack.part("clip")
        logits = cosine * min(np.exp(float(clip.params["logit_scale"])), 100.0)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    def fit_for_clip(self, images) -> np.ndarray:
        """uint8 pictures of any size -> (N, S, S, 3) as encode_image takes them."""
        side = self.clip_image_size
        return np.stack([fit(i, side) for i in checks.image_list(images)])

    def fit_for_decoder(
        self, images, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """uint8 pictures of any sizes -> (N, h, w, 3), each draw_size by default."""
        sides = self.draw_sides(height, width)
        return np.stack([fit(i, sides) for i in checks.image_list(images)])

    def invert(
        self,
        images,
        steps: int | str | None = 250,
        guidance: float | None = 1.0,
        corrections: int = 0,
        progress: Progress | bool | None = None,
        prompts: str | Sequence[str] | None = None,
        **seen,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The latents of pictures: (z_i (N, D), x_T (N, s, s, 3)), float32.

        `decode(z_i, noise=x_T, inverted=True)` by DDIM with the same steps and guidance
        draws them again, with the same `prompts`, `hint`, `height` and `width` if there
        are any: the more steps the closer, as far as the decoder can draw them at all.
        """
        images = checks.image_list(images)
        z = self._embed(images)
        pixels = self.fit_for_decoder(images, seen.get("height"), seen.get("width"))
        options: dict[str, Any]
        options = dict(guidance=guidance, steps=steps, corrections=corrections)
        options |= dict(progress=progress, **seen)
        return z, self.invert_pixels(pixels, z, prompts, **options)

    def reconstruct(
        self,
        images,
        steps: int | str = 250,
        guidance: float = 1.0,
        corrections: int = 0,
        progress: Progress | bool | None = None,
        **decoder,
    ) -> np.ndarray:
        """Pictures to their latents and back."""
        options = dict(guidance=guidance, steps=steps, inverted=True, **decoder)
        options = self._check(**options)
        progress = as_progress(progress)
        before = StepsOnly(progress)
        seen = _seen(options)
        z, x_T = self.invert(images, steps, guidance, corrections, before, **seen)
        return self.decode(z, noise=x_T, **options, progress=progress)

    def variations(
        self,
        images,
        seed: int = 0,
        eta: float = 1.0,
        guidance: float | None = None,
        steps: int | str | None = None,
        inverted: bool = False,
        corrections: int = 0,
        first: int = 0,
        progress: Progress | bool | None = None,
        prompts: str | Sequence[str] | None = None,
        **decoder,
    ) -> np.ndarray:
        """Pictures with the CLIP embeddings of others: same content, new details.

        By default x_T is drawn afresh, so that nothing of a picture but its embedding
        is kept. With `inverted` it starts from the picture's own x_T (paper, section
        3.1): eta = 0 gives the picture back, more noise moves away from it. Guidance
        and steps are then 1 and 250 by default: without guidance inversion is exact.
        `prompts`, one or one per picture, are captions for a decoder that sees some.
        """
        if inverted:
            guidance = INVERTED["guidance"] if guidance is None else guidance
            steps = INVERTED["steps"] if steps is None else steps
        options = dict(guidance=guidance, steps=steps, inverted=inverted, **decoder)
        options = self._check(corrections, **options)
        checks.number("eta", eta, 0)
        progress, noise = as_progress(progress), None
        images = checks.image_list(images)
        if prompts is not None:
            prompts = checks.one_each(prompts, len(images))
        if inverted:
            before, seen = StepsOnly(progress), _seen(options)
            z, noise = self.invert(
                *(images, steps, guidance, corrections, before, prompts), **seen
            )
        else:
            z = self._embed(images)
        options |= dict(seed=seed, eta=eta, first=first, progress=progress)
        return self.decode(z, prompts, noise=noise, **options)

    def interpolate(
        self,
        a,
        b,
        frames: int = 8,
        noise: str = "inverted",
        seed: int = 0,
        guidance: float | None = None,
        steps: int | str | None = None,
        corrections: int = 0,
        progress: Progress | bool | None = None,
        **decoder,
    ) -> np.ndarray:
        """From pictures a to pictures b along the arc between their embeddings.

        Args:
          a, b: N pictures each, or one.
          frames: pictures per row, the end points included.
          noise: "inverted" interpolates the inverted x_T as well, so that the end
            points are a and b; "shared" draws one x_T per row (the paper's figure 4).
          guidance, steps: by default 1 and 250 with inverted noise, with
            shared as for `decode`.

        Returns:
          uint8 (N, frames, S, S, 3).
        """
        if noise not in NOISES:
            raise UsageError(f"noise {noise!r}: expected one of {', '.join(NOISES)}")
        exact = noise == "inverted"
        if exact:
            guidance = INVERTED["guidance"] if guidance is None else guidance
            steps = INVERTED["steps"] if steps is None else steps
        frames = checks.integer("frames", frames, 2, 4096)
        a, b = checks.image_list(a), checks.image_list(b)
        if len(a) != len(b):
            raise UsageError(f"{len(a)} pictures to go from, {len(b)} to go to")
        t = np.linspace(0, 1, frames)
        options = dict(guidance=guidance, steps=steps, inverted=exact)
        options = self._check(corrections, **options, **decoder)
        progress, x_T = as_progress(progress), None
        if exact:
            before, seen = StepsOnly(progress), _seen(options)
            if seen.get("hint") is not None:
                seen["hint"] = np.concatenate([seen["hint"]] * 2)
            z, x_T = self.invert([*a, *b], steps, guidance, corrections, before, **seen)
            x_T = _flat_slerp(x_T[: len(a)], x_T[len(a) :], t)
        else:
            z = self._embed([*a, *b])
        z = slerp(z[: len(a), None], z[len(a) :, None], t)  # (N, frames, D)
        return self._rows(z, x_T, seed, options, progress)

    def text_diff(
        self,
        images,
        source: str,
        target: str,
        thetas: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4),
        guidance: float = 1.0,
        steps: int | str = 250,
        corrections: int = 0,
        progress: Progress | bool | None = None,
        **decoder,
    ) -> np.ndarray:
        """Pictures changed as a caption changes from `source` to `target`.

        Args:
          images: N pictures.
          source: what they show, or "a photo", or "".
          target: what they should show.
          thetas: how far to go, in [0, 1]; the paper goes to between 0.25 and 0.5.

        Returns:
          uint8 (N, thetas, S, S, 3); x_T is the picture's own throughout, so that
          theta = 0 reconstructs it.
        """
        angles = [checks.fraction("theta", theta) for theta in np.atleast_1d(thetas)]
        if not angles:
            raise UsageError("no thetas: give at least one")
        options = dict(guidance=guidance, steps=steps, inverted=True, **decoder)
        options = self._check(**options)
        # of unit vectors, as the paper's are: of others the longer would tilt it
        before, after = _unit(self.encode_text([source, target], progress=False))
        progress = as_progress(progress)
        listener = StepsOnly(progress)
        seen = _seen(options)
        z, x_T = self.invert(images, steps, guidance, corrections, listener, **seen)
        z = rotate(z[:, None], (after - before)[None, None], np.array(angles))
        x_T = np.repeat(x_T, len(angles), axis=0)
        return self._rows(z, x_T, 0, options, progress)

    def inpaint(
        self,
        images,
        masks: np.ndarray,
        prompt: str | None = None,
        seed: int = 0,
        guidance: float | None = None,
        steps: int | str | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        prior: Mapping[str, Any] | None = None,
        first: int = 0,
        progress: Progress | bool | None = None,
        **decoder,
    ) -> np.ndarray:
        """Pictures painted anew where the mask is True; the rest stays.

        One pass in which known pixels take their own path (sampling.sample_decoder):
        no training for it, and no return steps, so that seams may show.

        Args:
          images: N pictures.
          masks: bool (N, h, w) or (h, w), of the size that is drawn.
          prompt: what the whole picture should show; without one, what the picture's
            own embedding says, and without a prior that beside the prompt.
          sampler: and with it `variance` may be chosen here, as for `decode`.
          prior: options of `sample_embeddings`, for the prompt's embedding.
        """
        options: dict[str, Any]
        options = dict(guidance=guidance, steps=steps, sampler=sampler, **decoder)
        # complain before anything is drawn
        resolve_options(self.stack, "decoder", _decoder_options(**options, eta=eta))
        pixels = self.fit_for_decoder(
            images, options.get("height"), options.get("width")
        )
        progress = as_progress(progress)
        masks = np.broadcast_to(masks, (len(pixels), *np.shape(masks)[-2:]))
        own = {"seed": seed, "first": first, **(prior or {})}
        z, captions = self._conditions_of(images, prompt, own, progress)
        options |= dict(eta=eta, seed=seed, first=first, progress=progress)
        return self.decode(z, captions, keep=(pixels, ~masks), **options)

    def pca_reconstructions(
        self,
        images,
        dims: Sequence[int] = (20, 30, 40, 80, 120, 160, 200, 320),
        seed: int = 0,
        guidance: float | None = None,
        steps: int | str | None = None,
        progress: Progress | bool | None = None,
        **decoder,
    ) -> np.ndarray:
        """What the first principal components of an embedding keep of a picture.

        Paper, section 4, figure 7: z_i projected onto the components of the training
        embeddings, decoded by DDIM from one noise per picture.

        Args:
          images: N pictures.
          dims: numbers of components.

        Returns:
          uint8 (N, dims, S, S, 3).

        Raises:
          FileNotFoundError: the export has no statistics of its embeddings.
        """
        statistics = self.stack.embedding_statistics()
        most = len(statistics.mean)
        dims = [checks.integer("dims", n, 0, most) for n in dims]
        options = self._check(guidance=guidance, steps=steps, **decoder)
        z = self._embed(images)
        z = np.stack([statistics.project(z, n) for n in dims], axis=1)
        return self._rows(z, None, seed, options, progress)

    def _embed(self, images) -> np.ndarray:
        """Pictures of any sizes -> their raw embeddings (N, D)."""
        return self.encode_image(self.fit_for_clip(images), progress=False)

    def _conditions_of(self, images, prompts, prior, progress):
        """(embeddings (N, D), captions for the decoder or None) of images to be edited.

        The embeddings are the prior's of the prompts. Without prompts, or without a
        prior to make them, they are the images' own.
        """
        images = checks.image_list(images)
        if prompts is None:
            return self._embed(images), None
        prompts = checks.one_each(prompts, len(images))
        captions = prompts if self._sees_captions else None
        if captions and {"prior", "ar_prior"}.isdisjoint(self.stack.parts):
            return self._embed(images), captions
        before = StepsOnly(progress)
        return self.sample_embeddings(prompts, **prior, progress=before), captions

    def _check(self, corrections=0, **decoder):
        """The options for `decode` by DDIM; raises before anything is computed."""
        if decoder.setdefault("sampler", "ddim") != "ddim":
            raise UsageError(
                f"sampler {decoder['sampler']!r}: latents are drawn by ddim; leave it "
                "out, or draw with decode"
            )
        inverted = decoder.get("inverted", False)
        options = {k: v for k, v in decoder.items() if k != "inverted"}
        resolve_options(self.stack, "decoder", _decoder_options(**options), inverted)
        if corrections and not inverted:
            raise UsageError(
                f"corrections={corrections}, which are the inversion's, but noise that "
                "is drawn"
            )
        return decoder

    def _rows(self, z, x_T, seed, options, progress):
        """Pictures (N, K, S, S, 3) of embeddings (N, K, D), all noise one per row.

        x_T (N K, s, s, 3) comes row after row; None draws one per row.
        """
        n, k, dim = z.shape
        options = dict(**options, seed=seed, progress=progress)
        options["indices"] = np.repeat(np.arange(n), k)
        if options.get("hint") is not None:
            options["hint"] = np.repeat(options["hint"], k, axis=0)
        images = self.decode(z.reshape(n * k, dim), noise=x_T, **options)
        return images.reshape(n, k, *images.shape[1:])


def _decoder_options(hint=None, **options) -> DecoderOptions:
    """Those of `decode`'s arguments that are options; a hint is none."""
    del hint
    return make(DecoderOptions, options)


def _seen(options):
    """What an inversion must be given of the arguments of the `decode` after it."""
    return {name: options[name] for name in SEEN if name in options}


def _flat_slerp(a, b, t):
    """(N, S, S, 3) twice and K positions -> (N K, S, S, 3)."""
    n, *shape = a.shape
    mixed = slerp(a.reshape(n, 1, -1), b.reshape(n, 1, -1), t)
    return mixed.reshape(n * len(t), *shape)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12)
