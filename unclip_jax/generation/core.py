"""The way from text to images, its two halves, and CLIP's two encoders."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from unclip_jax.config import check_keys
from unclip_jax.diffusion import process, samplers
from unclip_jax.errors import UsageError
from unclip_jax.generation import checks, latents, sampling
from unclip_jax.generation.description import describe
from unclip_jax.generation.loading import Stack
from unclip_jax.generation.options import (
    OPTIONS,
    DecoderOptions,
    PriorOptions,
    UpsamplerOptions,
    build,
    defaults,
    make,
    takes,
)
from unclip_jax.generation.pipeline import Pipeline
from unclip_jax.generation.resolve import resolve_all
from unclip_jax.interop import native
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.progress import Progress, as_progress, on_step


class Core:
    """Encodes, samples and inverts: the methods that run components of a stack.

    Attributes:
      stack: the parts as read.
      tokenizer: encodes captions; None if the folder had none.
      pipeline: runs the components.
    """

    def __init__(self, stack: Stack, mesh: Mesh | None = None, batch_size: int = 32):
        checks.integer("batch_size", batch_size, 1, 2**20)
        self.stack = stack
        self.tokenizer = stack.tokenizer
        self.pipeline = Pipeline(stack, mesh or make_mesh(), batch_size)

    def __repr__(self) -> str:
        """The components with their sizes, and how they draw unless they are told."""
        return "\n".join(
            [f"{type(self).__name__} of {self.stack.origin}", *describe(self.stack)]
        )

    @property
    def image_size(self) -> int:
        """Side of the pictures that text2image and variations draw, enlarged."""
        if not self.stack.upsamplers:
            return self.draw_size
        return self.stack.part(self.stack.upsamplers[-1]).module.image_size

    @property
    def clip_image_size(self) -> int:
        """Side of the pictures that CLIP takes; UsageError if it takes none."""
        module = self.stack.part("clip").module
        if not module.vision_depth:
            raise UsageError(
                f"{self.stack.origin} has no image encoder, so that nothing starts "
                "from an image's embedding: give prompts, or embeddings of your own "
                "to `decode` or `sample_embeddings`"
            )
        return module.image_size

    @property
    def draw_size(self) -> int:
        """Side of the pictures as the decoder draws them, before enlargement."""
        module = self.stack.part("decoder").module
        if not module.is_latent:
            return module.image_size
        return module.image_size * self.stack.part("autoencoder").module.factor

    def draw_sides(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """(rows, columns) of the pictures that the decoder draws by these options."""
        return height or self.draw_size, width or self.draw_size

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(rows, columns, channels) of x_T: of the images, or of their latents."""
        return latents.noise_shape(self.stack.part("decoder"))

    def settings(
        self, parts: Sequence[str] = native.KINDS, **options
    ) -> dict[str, dict[str, Any]]:
        """How each of the `parts` draws with `options` of text2image.

        Returns:
          part -> {"sampler", "steps", "variance", "guidance", ...}: what is asked for,
          completed with what the export recommends; JSON-able.

        Raises what text2image does for the options; UsageError for unknown names.
        """
        check_keys(dict.fromkeys(parts), native.KINDS, "parts")
        check_keys(options, defaults(*OPTIONS), "options of text2image")
        return resolve_all(self.stack, parts, options)

    def tokenize(self, prompts: str | Sequence[str]) -> np.ndarray:
        """N captions -> int32 (N, L)."""
        prompts = checks.prompts(prompts)
        if self.tokenizer is None:
            have = self.stack.parts
            raise native.missing_part(self.stack.origin, native.TOKENIZER, [*have])
        return self.tokenizer.encode(prompts)

    def encode_image(
        self, images, progress: Progress | bool | None = None
    ) -> np.ndarray:
        """uint8 (N, S, S, 3), S = clip_image_size -> raw embeddings (N, D) float32."""
        images = checks.images(images, self.clip_image_size, "CLIP")
        self.stack.part("clip")
        return self._encode(self.pipeline.encode_image, images, progress)

    def encode_text(
        self, prompts, progress: Progress | bool | None = None
    ) -> np.ndarray:
        """N captions -> raw embeddings (N, D) float32."""
        if not self.stack.part("clip").module.text_projects:
            raise UsageError(
                f"the text encoder of {self.stack.origin} makes states, but no "
                "embedding to compare with images': give prompts to `variations` or "
                "`decode`, whose decoder sees the states, or load another model"
            )
        tokens = self.tokenize(prompts)
        return self._encode(self.pipeline.encode_text, tokens, progress)

    def _encode(self, function, rows, progress):
        """Embeddings of rows; a bar is shown of several batches only."""
        several = len(rows) > self.pipeline.batch_size
        progress = as_progress(progress, "encoding", several)
        return self.pipeline.map(function, (rows,), progress)

    @takes(*OPTIONS, by_flag=True)
    def text2image(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        *,
        first: int = 0,
        hint: np.ndarray | None = None,
        progress: Progress | bool | None = None,
        **options,
    ) -> np.ndarray:
        """Draws one picture per prompt.

        Args:
          prompts: N captions.
          seed: of all randomness.
          prior_guidance, decoder_guidance: classifier-free guidance; 1 is none. None is
            what the export recommends (as its training config said), else 4 and 8.
          negative_prompt: a caption that guidance leads away from, in place of the
            empty one: the prior's, and that of a decoder which sees no caption.
          num_candidates: embeddings drawn per prompt, of which the one nearest to the
            text's is decoded.
          prior_steps, decoder_steps, upsampler_steps: sampling steps of diffusion, or
            timesteps by a respacing, "ddim25" or "10,10,3,2,2" (diffusion.schedule).
            None is what the export recommends, else 64, 50 and 27.
          prior_sampler, decoder_sampler: names in diffusion.samplers.SAMPLERS; None is
            what the export recommends, else "ddpm" and "ddim".
          prior_variance, decoder_variance: of the sampler ddpm's steps: "fixed_small",
            "fixed_large", "learned_range" if the model predicts it, or "analytic" if
            the export has what unclip_jax.estimate_variance adds. None is what the
            export recommends, else what the model predicts, else "fixed_small".
          decoder_guidance_interval: (first, last) timesteps that are guided, of
            0 (nearly the picture) ... T - 1 (noise); the others take guidance 1.
          decoder_guidance_rescale: in [0, 1], how far guided predictions are brought
            back to the contrast of unguided ones.
          dynamic_threshold: in (0, 1]: pixels beyond this quantile of a prediction's
            are clipped and all scaled back (Imagen), rather than clipped at the
            bounds of pictures; for large guidance.
          eta: noise of the decoder's DDIM steps.
          prior: "diffusion" or "autoregressive"; "auto" is the one that the export
            has, the diffusion prior if both.
          temperature, top_k, top_p, dot_quantile: of the autoregressive prior's draws,
            which has no steps and no sampler: temperature 0 takes the likeliest code;
            only the top_k likeliest (0: all) and the fewest that hold the probability
            top_p are drawn from; dot products come from above their training
            distribution's dot_quantile.
          first: number of the first picture: prompts[a:] with first=a are drawn as
            they are within the whole list.
          hint: as for `decode`.
          progress: a bar is shown in notebooks and on terminals; False shows none,
            True one anywhere. Or a function that is called with (0, total), then
            (done, total) after each batch; see unclip_jax.progress for more.

        Returns:
          uint8 (N, S, S, 3), S = image_size.

        Raises:
          UsageError: what is wrong with an argument.
          FileNotFoundError: the export lacks a part; the message says how to add it.
        """
        prior, decoder, upsampler = build(options, *OPTIONS)
        pipeline = self.pipeline
        pipeline.check(prior, decoder, upsampler)
        key_seed, tokens = _seed(seed), self.tokenize(prompts)
        hint = self._check_hint(hint, decoder, len(tokens))
        progress = as_progress(progress)
        steps = {"on_step": on_step(progress)}

        def sample(tokens, no_clip, indices, hint):
            noise = key_seed, indices
            z = pipeline.sample_prior(tokens, *noise, prior, **steps)
            negative = pipeline.sample_negative(prior, tokens, *noise, **steps)
            conditions = z, no_clip, tokens
            inpainting = sampling.Inpainting(hint=hint)
            x = pipeline.sample_decoder(
                *(*conditions, *noise, decoder, inpainting),
                negative=negative,
                **steps,
            )
            return pipeline.upsample(x, *noise, upsampler, **steps)

        n = len(tokens)
        arrays = tokens, np.zeros(n, bool), _indices(first, n), hint
        return pipeline.map(sample, arrays, progress)

    @takes(PriorOptions)
    def sample_embeddings(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        *,
        first: int = 0,
        start: np.ndarray | None = None,
        strength: float = 1.0,
        progress: Progress | bool | None = None,
        **options,
    ) -> np.ndarray:
        """The first half of text2image: raw image embeddings (N, D) float32.

        Args:
          start: raw image embeddings (N, D) that are changed as the prompts say,
            instead of drawing new ones; the more the larger `strength`, in (0, 1].
          others: as for text2image.
        """
        prior = make(PriorOptions, options)
        self.pipeline.check(prior)
        key_seed, tokens = _seed(seed), self.tokenize(prompts)
        if start is not None:
            dim = self.stack.part("clip").module.embed_dim
            start = checks.embeddings(start, dim)
            checks.same_length("embeddings to start from", start, "prompts", tokens)
            checks.starts_from_embeddings(prior.prior, self.stack.parts)
        progress = as_progress(progress)

        def sample(tokens, indices, start):
            return self.pipeline.sample_prior(
                *(tokens, key_seed, indices, prior, start, strength),
                on_step=on_step(progress),
            )

        arrays = tokens, _indices(first, len(tokens)), start
        return self.pipeline.map(sample, arrays, progress)

    @takes(DecoderOptions)
    def decode(
        self,
        embeddings: np.ndarray | None,
        prompts: str | Sequence[str] | None = None,
        seed: int = 0,
        *,
        first: int = 0,
        indices: Sequence[int] | None = None,
        noise: np.ndarray | None = None,
        inverted: bool = False,
        keep: tuple[np.ndarray, np.ndarray] | None = None,
        hint: np.ndarray | None = None,
        start: np.ndarray | None = None,
        strength: float = 1.0,
        encoder: str | None = None,
        progress: Progress | bool | None = None,
        **options,
    ) -> np.ndarray:
        """The second half of text2image: pictures of raw embeddings (N, D).

        Without prompts the decoder sees the empty caption, without embeddings the
        null embedding: what it was trained with where either was dropped.

        Args:
          embeddings: text embeddings do as well; the decoder was not trained on them.
          prompts: for a decoder that sees captions.
          others: as for text2image, where their names may begin with decoder_.
          indices: N numbers of pictures, instead of first, first + 1, ...: pictures of
            one number have all noise in common, that of the upsamplers too.
          noise: x_T float32 (N, *noise_shape), instead of drawing it.
          inverted: whether `noise` is what `invert` found. DDIM then begins and ends at
            the timesteps of the inversion and, without guidance, does not bound x_0:
            with the same steps and eta = 0 it undoes the inversion.
          keep: (pictures uint8 (N, h, w, 3), masks bool (N, h, w)) of the size that is
            drawn: what is True in the mask stays as it is in the picture, but for later
            enlargement.
          hint: uint8 (N, h, w, 3), such as depth maps, for a decoder that sees one.
          start: uint8 (N, h, w, 3), pictures that noise is added to, rather than noise
            alone; `strength`, in (0, 1], says how much.
          encoder: what made the space of the embeddings, such as Prior.encoder: it must
            be the fingerprint of the decoder's CLIP.
        """
        checks.encoder(encoder, self.stack.part("decoder").clip_fingerprint)
        rows = self._conditions(embeddings, prompts)
        n = len(rows[0])
        pipeline, decoder = self.pipeline, make(DecoderOptions, options)
        pipeline.check(decoder=decoder, upsampler=UpsamplerOptions(), inverted=inverted)
        sides = self.draw_sides(decoder.height, decoder.width)
        inpainting = sampling.Inpainting(hint=self._check_hint(hint, decoder, n))
        if inverted and noise is None:
            raise UsageError("inverted=True, but no noise that `invert` found")
        if noise is not None:
            *_, channels = self.noise_shape
            factor = self.draw_size // self.noise_shape[0]
            shape = n, *(side // factor for side in sides), channels
            inpainting = inpainting._replace(x_T=checks.noise(noise, shape))
        if keep is not None:
            known, mask = checks.known(*keep, (n, *sides))
            inpainting = inpainting._replace(known=known, keep=mask)
        if start is not None:
            start = checks.images(start, sides, "the decoder")
            checks.same_length("images to start from", start, "embeddings", rows[0])
            inpainting = inpainting._replace(start=process.from_uint8(start))
        progress = as_progress(progress)
        key_seed, steps = _seed(seed), {"on_step": on_step(progress)}

        def sample(conditions, indices, inpainting):
            z, no_clip, tokens = conditions
            x = pipeline.sample_decoder(
                *(z, no_clip, tokens, key_seed, indices, decoder),
                inpainting=inpainting,
                inverted=inverted,
                strength=strength,
                **steps,
            )
            return pipeline.upsample(x, key_seed, indices, **steps)

        numbers = _indices(first, n) if indices is None else checks.indices(indices, n)
        return pipeline.map(sample, (rows, numbers, inpainting), progress)

    def invert_pixels(
        self,
        images: np.ndarray,
        embeddings: np.ndarray | None,
        prompts: str | Sequence[str] | None = None,
        guidance: float | None = 1.0,
        steps: int | str | None = 50,
        corrections: int = 0,
        progress: Progress | bool | None = None,
        hint: np.ndarray | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> np.ndarray:
        """The noise from which `decode` draws pictures, by DDIM inversion.

        Undone by `decode(..., noise=x_T, inverted=True, sampler="ddim")`.

        Args:
          images: uint8 (N, s, s, 3), s = draw_size, or (N, height, width, 3).
          embeddings, prompts, hint: what the decoder is conditioned on; one that takes
            a noise level sees embeddings without noise.
          guidance, steps: those of the later `decode`; guidance above 1 makes it
            coarse.
          corrections: more calls of the decoder per step, each of which makes the step
            more exactly the inverse of DDIM's (diffusion.samplers.ddim_inversion).

        Returns:
          x_T, float32 (N, *noise_shape) unless the images are of another size, at the
          first of the timesteps: the largest whose signal is at least
          sampling.MIN_SIGNAL.
        """
        options = DecoderOptions(
            guidance=guidance, steps=steps, sampler="ddim", height=height, width=width
        )
        self.pipeline.check(decoder=options, inverted=True)
        images = checks.images(images, self.draw_sides(height, width), "the decoder")
        rows = self._conditions(embeddings, prompts)
        if len(images) != len(rows[0]):
            raise UsageError(f"{len(rows[0])} embeddings for {len(images)} images")
        hint = self._check_hint(hint, options, len(images))
        corrections = checks.integer("corrections", corrections, 0, 100)
        progress = as_progress(progress, "inverting")

        def invert(x, conditions, hint):
            z, no_clip, tokens = conditions
            return self.pipeline.invert(
                *(x, z, no_clip, tokens, options, corrections, hint),
                on_step=on_step(progress),
            )

        arrays = process.from_uint8(images), rows, hint
        return self.pipeline.map(invert, arrays, progress)

    def draw_noise(self, count: int, seed: int = 0, first: int = 0) -> np.ndarray:
        """The x_T that `decode` would draw: float32 (count, *noise_shape)."""
        keys = sampling.start_keys(_seed(seed), _indices(first, count))
        return np.asarray(samplers.normal(keys, self.noise_shape))

    @property
    def _sees_captions(self) -> bool:
        """Whether the decoder is told what the picture shows in words, too."""
        return self.stack.part("decoder").module.caption != "none"

    def _check_hint(self, hint, decoder: DecoderOptions, count: int):
        """What `checks.hint` returns for `count` pictures by these options."""
        takes_one = self.stack.part("decoder").module.extra == "hint"
        sides = self.draw_sides(decoder.height, decoder.width)
        return checks.hint(hint, takes_one, self.stack.origin, sides, count)

    def _conditions(self, embeddings, prompts):
        """Rows of what the decoder sees: (embeddings, whether null, tokens)."""
        dim = self.stack.part("decoder").module.embed_dim
        if embeddings is None and prompts is None:
            raise UsageError("neither embeddings nor prompts: give one of them")
        null = embeddings is None
        if null:
            embeddings = np.zeros((len(checks.prompts(prompts)), dim), np.float32)
        embeddings = checks.embeddings(embeddings, dim)
        n = len(embeddings)
        if prompts is not None and not self._sees_captions:
            raise UsageError(
                f"the decoder of {self.stack.origin} sees no caption: leave prompts "
                "out, or give those to the prior (`text2image`, `sample_embeddings`)"
            )
        tokens = self.tokenize([""] * n if prompts is None else prompts)
        if len(tokens) != n:
            raise UsageError(f"{len(tokens)} prompts for {n} embeddings")
        return embeddings, np.full(n, null), tokens


def _seed(seed: int) -> np.uint32:
    return np.uint32(checks.integer("seed", seed, 0, 2**32 - 1))


def _indices(first: int, count: int) -> np.ndarray:
    first = checks.integer("first", first, 0, 2**31 - 1 - count)
    return np.arange(first, first + count, dtype=np.int32)
