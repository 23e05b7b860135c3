"""The components of a stack, one call each: what UnCLIP's methods are made of.

All arrays of these calls are one batch on the devices; `map` makes batches of rows.
"""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from unclip_jax.generation import (
    checks,
    latents,
    prior_sampling,
    sampling,
    upsampling,
)
from unclip_jax.generation.image_array import ImageArray
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
from unclip_jax.parallel.batched_runner import BatchedRunner
from unclip_jax.parallel.sharding import batch_sharding
from unclip_jax.progress import Progress
from unclip_jax.progress import on_step as on_step_of

OnStep = Callable[[str, int, int], None]  # see progress.py

SHORT = 0.1  # seconds, below which a piece of a loop is too short to be worth a call
NO_INPAINTING = sampling.Inpainting()
RECOMMENDED = UpsamplerOptions()  # by the export


class Pipeline:
    """Runs the components of a stack; programs are compiled when first run.

    Attributes:
      stack: the components.
      batch_size: rows computed at a time.
    """

    def __init__(self, stack: Stack, mesh: Mesh, batch_size: int):
        self.stack = stack
        self._runner = BatchedRunner(mesh, batch_size)
        self.batch_size = batch_size
        self._jitted: dict[tuple[Callable, str], Callable] = {}
        self._params: dict[str, Any] = {}

    def map(
        self, function: Callable, arrays: tuple, progress: Progress | None = None
    ) -> np.ndarray:
        """Returns function(*rows) over batches of the arrays' rows, on the host.

        `arrays` is a tuple of arrays and of pytrees of them. Images are an ImageArray.
        """
        # a batch is reported before the steps of the next one
        ahead = on_step_of(progress) is None
        rows = self._runner.map(function, arrays, progress, ahead)
        return rows.view(ImageArray) if rows.dtype == np.uint8 else rows

    def run(self, function: Callable, kind: str, *arrays, **static) -> Any:
        """Returns function(component, its params, *arrays, **static), compiled."""
        program = self.jit(function, kind)
        return program(self._device_params(kind), *arrays, **static)

    def jit(self, function: Callable, kind: str) -> Callable:
        """jit of function(component, ...), whose keyword-only arguments are static."""
        key = function, kind
        if key not in self._jitted:
            parameters = inspect.signature(function).parameters.values()
            static = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
            self._jitted[key] = jax.jit(
                functools.partial(function, self.stack.part(kind)),
                static_argnames=static,
                out_shardings=batch_sharding(self._runner.mesh),
            )
        return self._jitted[key]

    def run_steps(
        self,
        function: Callable,
        kind: str,
        steps: int,
        on_step: OnStep | None,
        *arrays,
        name: str = "",
        **static,
    ) -> jax.Array:
        """Runs a loop of `steps` steps, see sampling, and says when each starts.

        Args:
          function: of (component, its params, sampling.Piece | None, *arrays).
          kind: of the component.
          steps: how many there are.
          on_step: called with (name, step, steps) when a step starts, of short steps
            for several at a time.
          *arrays: of the function.
          name: of the loop, the component's by default.
          **static: of the function.

        Returns:
          The first array of the loop's state at its end.
        """
        state = self.run(function, kind, None, *arrays, **static)
        size, first, before = 1 if on_step else steps, 0, time.monotonic()
        while first < steps:
            end = min(first + size, steps)
            piece = sampling.Piece(state, *map(np.int32, (first, end, steps)))
            after = self.run(function, kind, piece, *arrays, **static)
            if on_step:
                # the devices have the next piece already, and do not wait for the host
                jax.block_until_ready(state)
                for step in range(first, end):
                    on_step(name or kind, step, steps)
                now = time.monotonic()
                if now - before < SHORT:
                    size *= 2
                before = now
            state, first = after, end
        return jax.tree.leaves(state)[0]

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
        on_step: OnStep | None = None,
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
                guided=bool(scale != 1),
                truncated=truncated,
                num_candidates=count,
            )
        scale, static = resolve_options(self.stack, "prior", options)
        if start is not None:
            static = with_strength("prior", static, strength)
        steps = sampling.count_steps(self.stack.part("prior"), static)
        z = self.run_steps(
            prior_sampling.sample_prior,
            *("prior", steps, on_step),
            *(tokens, text, seed, indices, scale, self.encode_states("prior", tokens)),
            *(start, negative),
            options=static,
            num_candidates=count,
        )
        return self.run(
            prior_sampling.finish_prior, "prior", z, text, num_candidates=count
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

    def sample_negative(
        self,
        options: PriorOptions,
        tokens,
        seed,
        indices,
        on_step: OnStep | None = None,
    ):
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
        return self.sample_prior(negative, seed, indices, plain, on_step=on_step)

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
        on_step: OnStep | None = None,
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
        steps = sampling.count_steps(self.stack.part("decoder"), static)
        images = self.run_steps(
            sampling.sample_decoder,
            *("decoder", steps, on_step),
            *(clip_image, no_clip, tokens, caption),
            *(seed, indices, scale, eta, inpainting, np.int32(options.noise_level)),
            negative,
            options=static,
        )
        images = self.run(
            sampling.finish_decoder, "decoder", images, inpainting, rounded=rounded
        )
        if not self.draws_latents:
            return images
        return self.run(
            latents.decode,
            "autoencoder",
            *(images, known, keep),
            rounded=rounded,
            tile=options.tile,
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
        self,
        images,
        clip_image,
        no_clip,
        tokens,
        options: DecoderOptions,
        corrections: int,
        hint=None,
        on_step: OnStep | None = None,
    ) -> jax.Array:
        """Images (B, s, s, 3) -> the noise, of `noise_shape`, that they are from."""
        images = self.encode_latents(images)
        scale, static = resolve_options(self.stack, "decoder", options, inverted=True)
        caption = self.encode_caption("decoder", tokens)
        return self.run_steps(
            sampling.invert_images,
            "decoder",
            sampling.count_steps(self.stack.part("decoder"), static),
            on_step,
            *(images, clip_image, no_clip, tokens, caption, scale, hint),
            name="inversion",
            options=static,
            corrections=corrections,
        )

    def upsample(
        self,
        images,
        seed,
        indices,
        options: UpsamplerOptions = RECOMMENDED,
        on_step: OnStep | None = None,
    ) -> jax.Array:
        """Images of the decoder -> images of the last upsampler, if there is one."""
        for name in self.stack.upsamplers:
            last = name + native.LAST
            last = self._device_params(last) if last in self.stack.parts else None
            static = resolve_options(self.stack, name, options)[1]
            steps = sampling.count_steps(self.stack.part(name), static)
            images = self.run_steps(
                *(upsampling.upsample, name, steps, on_step),
                *(images, seed, indices, last),
                options=static,
            )
            rounded = name == self.stack.upsamplers[-1]
            images = self.run(upsampling.finish_upsample, name, images, rounded=rounded)
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
        encoder = native.TEXT_ENCODER
        if kind != "decoder" or encoder not in self.stack.parts:
            encoder = "clip"
        return self.run(sampling.text_states, encoder, tokens)

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
            self._params[kind] = self._runner.place_params(params)
        return self._params[kind]
