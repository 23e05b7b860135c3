"""The components of a stack, one call each: what UnCLIP's methods are made of.

All arrays of these calls are one batch on the devices; `map` makes batches of rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from unclip_jax.generation import checks, latents, prior_sampling, sampling
from unclip_jax.generation.batching import Programs
from unclip_jax.generation.loading import Stack
from unclip_jax.generation.options import (
    DecoderOptions,
    PriorOptions,
    UpsamplerOptions,
)
from unclip_jax.generation.resolve import (
    resolve_guidance,
    resolve_options,
    with_strength,
)
from unclip_jax.interop import native
from unclip_jax.models.text_transformer import fill_captions
from unclip_jax.progress import Progress

NO_INPAINTING = sampling.Inpainting()
RECOMMENDED = UpsamplerOptions()  # by the export


class Pipeline:
    """Runs the components of a stack; programs are compiled when first run.

    Attributes:
      stack: the components.
    """

    def __init__(self, stack: Stack, mesh: Mesh, batch_size: int):
        self.stack = stack
        self._programs = Programs(mesh, batch_size)
        self._params: dict[str, Any] = {}
        self._progress_callback: Callable | None = None
        self._report: Callable | None = None

    def map(
        self, function: Callable, arrays: tuple, progress: Progress | None = None
    ) -> np.ndarray:
        """Returns function(*rows) over batches of the arrays' rows, on the host.

        `arrays` is a tuple of arrays and of pytrees of them. Of a `progress` that has a
        method `step`, the loops of the programs say where they are.
        """
        total, results = len(jax.tree.leaves(arrays)[0]), []
        if progress is not None:
            progress(0, total)
        self._progress_callback = getattr(progress, "step", None)
        self._report = self._on_step if self._progress_callback else None
        try:
            for chunk in self._programs.chunks(total):
                rows = jax.tree.map(lambda a, chunk=chunk: a[chunk], arrays)
                batch = function(*self._programs.place(rows, total))
                results.append(self._programs.fetch(batch, chunk.stop - chunk.start))
                if self._report is not None:
                    jax.effects_barrier()  # no step is reported after its batch
                if progress is not None:
                    progress(chunk.stop, total)
        finally:
            self._progress_callback = self._report = None
        return np.concatenate(results)

    def run(self, function: Callable, kind: str, *arrays, **static) -> Any:
        """Returns function(component, its params, *arrays, **static), compiled."""
        component = self.stack.part(kind)
        program = self._programs.compiled(function, component, **static)
        return program(self._device_params(kind), *arrays)

    def run_steps(self, function: Callable, kind: str, *arrays, **static) -> Any:
        """Does the same for a function with a loop that reports its steps."""
        return self.run(function, kind, *arrays, report=self._report, **static)

    def encode_image(self, images) -> jax.Array:
        """uint8 (B, S, S, 3) -> raw embeddings (B, D)."""
        return self.run(sampling.encode_image, "clip", images)

    def encode_text(self, tokens) -> jax.Array:
        """int32 (B, L) -> raw embeddings (B, D)."""
        return self.run(sampling.encode_text, "clip", tokens)

    def check(
        self,
        prior: PriorOptions | None = None,
        decoder: DecoderOptions | None = None,
        upsampler: UpsamplerOptions | None = None,
        inverted: bool = False,
    ) -> None:
        """Raises what is wrong with options before anything is computed by them."""
        if prior is not None:
            self.stack.part("clip")
            checks.negative_prompt(prior, self.stack.parts)
            checks.integer("num_candidates", prior.num_candidates, 1, 1024)
            if checks.prior(prior.prior, self.stack.parts) == "prior":
                resolve_options(self.stack, "prior", prior)
            else:
                self._ar_options(prior)
        if decoder is not None:
            resolve_options(self.stack, "decoder", decoder, inverted)
        if upsampler is not None:
            for name in self.stack.upsamplers:
                resolve_options(self.stack, name, upsampler)

    def sample_prior(
        self,
        tokens,
        seed,
        indices,
        options: PriorOptions,
        start=None,
        strength: float = 1.0,
    ) -> jax.Array:
        """Captions, int32 (B, L) -> raw image embeddings (B, D).

        With `start`, raw embeddings (B, D), these are changed with that strength.
        """
        count = int(options.num_candidates)
        text = self.encode_text(tokens)
        negative = self.negative_tokens(options, len(tokens))
        if negative is not None:
            states = self.encode_states("prior", negative)
            negative = negative, self.encode_text(negative), states
        if checks.prior(options.prior, self.stack.parts) == "ar_prior":
            scale, values, truncated = self._ar_options(options)
            return self.run(
                prior_sampling.sample_ar_prior,
                "ar_prior",
                *(tokens, text, seed, indices, scale, *values),
                guided=scale != 1,
                truncated=truncated,
                num_candidates=count,
            )
        scale, static = resolve_options(self.stack, "prior", options)
        if start is not None:
            static = with_strength("prior", static, strength)
        return self.run_steps(
            prior_sampling.sample_prior,
            "prior",
            *(tokens, text, seed, indices, scale, self.encode_states("prior", tokens)),
            *(start, negative),
            options=static,
            num_candidates=count,
        )

    def negative_tokens(self, options: PriorOptions, rows: int) -> np.ndarray | None:
        """The tokens (rows, L) of the negative prompt, if there is one."""
        if options.negative_prompt is None:
            return None
        if self.stack.tokenizer is None:
            raise native.missing_part(
                self.stack.origin, native.TOKENIZER, [*self.stack.parts]
            )
        return self.stack.tokenizer.encode([options.negative_prompt] * rows)

    def sample_negative(self, options: PriorOptions, tokens, seed, indices):
        """Raw embeddings (B, D) that the decoder's guidance leads away from, or None.

        Those of the negative prompt, for a decoder that sees no caption; from the noise
        of the images' own.
        """
        negative = self.negative_tokens(options, len(tokens))
        if negative is None or self.stack.part("decoder").module.caption != "none":
            return None
        plain = dataclasses.replace(
            options, negative_prompt=None, guidance=1.0, num_candidates=1
        )
        return self.sample_prior(negative, seed, indices, plain)

    def sample_decoder(
        self,
        clip_image,
        no_clip,
        tokens,
        seed,
        indices,
        options: DecoderOptions,
        inpainting: sampling.Inpainting = NO_INPAINTING,
        inverted: bool = False,
        strength: float = 1.0,
        negative=None,
    ) -> jax.Array:
        """Conditions, see sampling.sample_decoder -> images (B, s, s, 3)."""
        scale, static = resolve_options(self.stack, "decoder", options, inverted)
        if inpainting.start is not None:
            static = with_strength("decoder", static, strength)
            start = self.encode_latents(inpainting.start)
            inpainting = inpainting._replace(start=start)
        caption, eta = self.encode_caption("decoder", tokens), np.float32(options.eta)
        rounded = not self.stack.upsamplers
        known, keep = inpainting.known, inpainting.keep
        if self.draws_latents and known is not None:
            factor = self.stack.part("autoencoder").module.factor
            inpainting = inpainting._replace(
                known=self.encode_latents(known), keep=latents.shrink_mask(keep, factor)
            )
        images = self.run_steps(
            sampling.sample_decoder,
            "decoder",
            *(clip_image, no_clip, tokens, caption),
            *(seed, indices, scale, eta, inpainting, np.int32(options.noise_level)),
            negative,
            options=static,
            rounded=rounded,
        )
        if not self.draws_latents:
            return images
        return self.run(
            latents.decode, "autoencoder", images, known, keep, rounded=rounded
        )

    @property
    def draws_latents(self) -> bool:
        """Whether the decoder's images are latents of the stack's autoencoder."""
        return self.stack.part("decoder").module.is_latent

    def encode_latents(self, images) -> jax.Array:
        """Images (B, H, W, 3) in [-1, 1] -> what the decoder denoises of them."""
        if not self.draws_latents:
            return images
        return self.run(latents.encode, "autoencoder", images)

    def invert(
        self, images, clip_image, no_clip, tokens, options: DecoderOptions, corrections
    ) -> jax.Array:
        """Images (B, s, s, 3) -> the noise, of `noise_shape`, that they are from."""
        images = self.encode_latents(images)
        scale, static = resolve_options(self.stack, "decoder", options, inverted=True)
        caption = self.encode_caption("decoder", tokens)
        return self.run_steps(
            sampling.invert_images,
            "decoder",
            *(images, clip_image, no_clip, tokens, caption, scale),
            options=static,
            corrections=corrections,
        )

    def upsample(
        self, images, seed, indices, options: UpsamplerOptions = RECOMMENDED
    ) -> jax.Array:
        """Images of the decoder -> images of the last upsampler, if there is one."""
        for name in self.stack.upsamplers:
            last = name + native.LAST
            last = self._device_params(last) if last in self.stack.parts else None
            images = self.run_steps(
                sampling.upsample,
                name,
                *(images, seed, indices, last),
                options=resolve_options(self.stack, name, options)[1],
                rounded=name == self.stack.upsamplers[-1],
            )
        return images

    def encode_caption(self, kind, tokens):
        """Returns CLIP's (text embedding, states) for a component that sees them.

        That is one with caption "clip_states"; one with "text_states" sees the states
        only. (None, None) for others.
        """
        states = self.encode_states(kind, tokens)
        if self.stack.part(kind).module.caption != "clip_states":
            return None, states
        return self.encode_text(tokens), states

    def encode_states(self, kind: str, tokens) -> jax.Array | None:
        """Returns CLIP's (B, L, W) states for such a component, None for others."""
        module = self.stack.part(kind).module
        if module.caption == "text_states":  # padding is seen
            tokens = fill_captions(tokens, module.eot_id, module.pad_id)
        elif module.caption != "clip_states":
            return None
        return self.run(sampling.text_states, "clip", tokens)

    def _ar_options(self, options):
        """(guidance scale, the other values, whether the draws are truncated)."""
        buckets = self.stack.part("ar_prior").module.num_buckets
        scale = resolve_guidance(self.stack, "ar_prior", options.guidance)
        values = (
            np.float32(checks.number("temperature", options.temperature, 0)),
            np.int32(checks.integer("top_k", options.top_k, 0, buckets)),
            np.float32(checks.number("top_p", options.top_p, 0, 1)),
            np.float32(checks.number("dot_quantile", options.dot_quantile, 0, 1)),
        )
        return scale, values, options.top_k > 0 or options.top_p < 1

    def _device_params(self, kind):
        if kind not in self._params:
            params = self.stack.part(kind).params
            self._params[kind] = self._programs.place_params(params)
        return self._params[kind]

    def _on_step(self, what: str, step: int, steps: int) -> None:
        if self._progress_callback is not None:
            self._progress_callback(what, step, steps)
