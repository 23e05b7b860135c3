"""Runs the parts of a stack: their parameters on the devices, rows batch by batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from unclip_jax.generation import checks, prior_sampling, sampling
from unclip_jax.generation.batching import Programs
from unclip_jax.generation.loading import Stack
from unclip_jax.generation.options import (
    DecoderOptions,
    PriorOptions,
    UpsamplerOptions,
)
from unclip_jax.generation.resolve import resolve_guidance, resolve_options
from unclip_jax.interop import native
from unclip_jax.progress import Progress

EXPORTS_OWN = UpsamplerOptions()


class Engine:
    """Programs of a stack's parts, compiled when first run, and reused.

    Options are checked when a program is asked for, before anything is computed. Of a
    `progress` that has a method `step`, the loops of the programs say where they are.

    Attributes:
      stack: the parts.
      painters: the parts whose work a picture is: decoder, then upsamplers.
    """

    def __init__(self, stack: Stack, mesh: Mesh, batch_size: int):
        self.stack = stack
        self.painters = ("decoder", *stack.upsamplers)
        self._programs = Programs(mesh, batch_size)
        self._params: dict[str, Any] = {}
        self._listener: Callable | None = None

    def program(self, function: Callable, kind: str, **static) -> Callable:
        """function(part, ..., **static) compiled for a part: (params, ...) -> rows."""
        return self._programs.compiled(function, self.stack.part(kind), **static)

    def listening(self, progress: Progress | None) -> Callable | None:
        """What the loops of programs tell of their steps, for `report`."""
        return self._hear if hasattr(progress, "step") else None

    def map(
        self,
        function: Callable,
        kinds: Sequence[str],
        arrays: tuple,
        progress: Progress | None,
    ) -> np.ndarray:
        """function(*params of kinds, *rows) over batches of the arrays' rows.

        `arrays` is a tuple of arrays and of pytrees of them.
        """
        params = [self.placed(kind) for kind in kinds]
        total, results = len(jax.tree.leaves(arrays)[0]), []
        if progress is not None:
            progress(0, total)
        self._listener = getattr(progress, "step", None)
        try:
            for chunk in self._programs.chunks(total):
                rows = jax.tree.map(lambda a, chunk=chunk: a[chunk], arrays)
                rows = self._programs.place(rows, total)
                batch = function(*params, *rows)
                results.append(self._programs.fetch(batch, chunk.stop - chunk.start))
                if self._listener is not None:
                    jax.effects_barrier()  # no step is heard of after its batch
                if progress is not None:
                    progress(chunk.stop, total)
        finally:
            self._listener = None
        return np.concatenate(results)

    def placed(self, kind: str):
        """The parameters of a part on the devices."""
        if kind not in self._params:
            part = self.stack.part(kind)
            self._params[kind] = self._programs.place_params(part.params)
        return self._params[kind]

    def prior(self, options: PriorOptions, report=None):
        """The part that `options.prior` means, and what draws from it.

        That is (clip params, its params, tokens, seed, indices) -> embeddings.
        """
        self.stack.part("clip")
        kind = checks.prior(options.prior, self.stack.parts)
        count = checks.integer("num_candidates", options.num_candidates, 1, 1024)
        encode = self.program(sampling.encode_text, "clip")
        if kind == "prior":
            draw = self._diffusion_prior(options, count, report)
        else:
            draw = self._code_prior(options, count)

        def run(clip, prior, tokens, seed, indices):
            return draw(clip, prior, tokens, encode(clip, tokens), seed, indices)

        return kind, run

    def _diffusion_prior(self, options, num_candidates, report):
        scale, drawing = resolve_options(self.stack, "prior", options)
        text_states = self.program(sampling.text_states, "clip")
        on_states = self.stack.part("prior").module.caption == "clip_states"
        draw = self.program(
            prior_sampling.draw_embeddings,
            "prior",
            drawing=drawing,
            report=report,
            num_candidates=num_candidates,
        )

        def run(clip, prior, tokens, text, seed, indices):
            states = text_states(clip, tokens) if on_states else None
            return draw(prior, tokens, text, seed, indices, scale, states)

        return run

    def _code_prior(self, options, num_candidates):
        buckets = self.stack.part("ar_prior").module.num_buckets
        scale = resolve_guidance(self.stack, "ar_prior", options.guidance)
        values = (
            np.float32(checks.number("temperature", options.temperature, 0)),
            np.int32(checks.integer("top_k", options.top_k, 0, buckets)),
            np.float32(checks.number("top_p", options.top_p, 0, 1)),
            np.float32(checks.number("dot_quantile", options.dot_quantile, 0, 1)),
        )
        draw = self.program(
            prior_sampling.draw_embeddings_by_codes,
            "ar_prior",
            guided=scale != 1,
            truncated=options.top_k > 0 or options.top_p < 1,
            num_candidates=num_candidates,
        )

        def run(clip, prior, tokens, text, seed, indices):
            return draw(prior, tokens, text, seed, indices, scale, *values)

        return run

    def decoder(
        self,
        options: DecoderOptions,
        upsampler: UpsamplerOptions = EXPORTS_OWN,
        *,
        inverted: bool = False,
        report=None,
    ):
        """What paints: the decoder by `options`, and upsamplers.

        That is (params of painters, conditions, seed, indices, canvas) -> images.
        """
        scale, drawing = resolve_options(self.stack, "decoder", options, inverted)
        eta = np.float32(options.eta)
        draw = self.program(
            sampling.draw_images,
            "decoder",
            drawing=drawing,
            rounded=self.painters[-1] == "decoder",
            report=report,
        )
        read, names = self.caption_reader(), self.painters[1:]
        larger = [
            self.program(
                sampling.enlarge_images,
                name,
                drawing=resolve_options(self.stack, name, upsampler)[1],
                rounded=self.painters[-1] == name,
                report=report,
            )
            for name in names
        ]

        def run(params, conditions, seed, indices, canvas):
            first, *rest = params
            images = draw(first, *read(conditions), seed, indices, scale, eta, canvas)
            for name, enlarge, weights in zip(names, larger, rest, strict=True):
                last = name + native.LAST
                last = self.placed(last) if last in self.stack.parts else None
                images = enlarge(weights, images, seed, indices, last)
            return images

        return run

    def caption_reader(self) -> Callable:
        """(.., tokens) -> (.., tokens, what the decoder needs of CLIP for them)."""
        if self.stack.part("decoder").module.caption != "clip_states":
            return lambda conditions: (*conditions, (None, None))
        encode = self.program(sampling.encode_text, "clip")
        states = self.program(sampling.text_states, "clip")

        def read(conditions):
            clip, tokens = self.placed("clip"), conditions[-1]
            return *conditions, (encode(clip, tokens), states(clip, tokens))

        return read

    def _hear(self, what: str, step: int, steps: int) -> None:
        if self._listener is not None:
            self._listener(what, step, steps)
