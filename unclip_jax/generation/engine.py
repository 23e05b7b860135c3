"""Runs the parts of a stack: their parameters on the devices, rows batch by batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from unclip_jax.generation import checks, prior_sampling, sampling
from unclip_jax.generation.batching import Programs
from unclip_jax.generation.loading import Stack
from unclip_jax.generation.options import settle, settle_guidance
from unclip_jax.interop import native
from unclip_jax.progress import Progress


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

    def prior(self, prior, *, guidance, num_candidates, diffusion, codes, report=None):
        """The part that `prior` means, and what draws from it.

        That is (clip params, its params, tokens, seed, indices) -> embeddings.
        `diffusion` and `codes` are the options that only one kind of prior has.
        """
        self.stack.part("clip")
        kind = checks.prior(prior, self.stack.parts)
        static = {
            "num_candidates": checks.integer("num_candidates", num_candidates, 1, 1024)
        }
        encode = self.program(sampling.encode_text, "clip")
        if kind == "prior":
            draw = self._diffusion_prior(guidance, static, report, **diffusion)
        else:
            draw = self._code_prior(guidance, static, **codes)

        def run(clip, prior, tokens, seed, indices):
            return draw(clip, prior, tokens, encode(clip, tokens), seed, indices)

        return kind, run

    def _diffusion_prior(self, guidance, static, report, **options):
        scale, drawing = settle(self.stack, "prior", guidance=guidance, **options)
        text_states = self.program(sampling.text_states, "clip")
        on_states = self.stack.part("prior").module.caption == "clip_states"
        draw = self.program(
            prior_sampling.draw_embeddings,
            "prior",
            drawing=drawing,
            report=report,
            **static,
        )

        def run(clip, prior, tokens, text, seed, indices):
            states = text_states(clip, tokens) if on_states else None
            return draw(prior, tokens, text, seed, indices, scale, states)

        return run

    def _code_prior(self, guidance, static, temperature, top_k, top_p, dot_quantile):
        buckets = self.stack.part("ar_prior").module.num_buckets
        scale = settle_guidance(self.stack, "ar_prior", guidance)
        values = (
            np.float32(checks.number("temperature", temperature, 0)),
            np.int32(checks.integer("top_k", top_k, 0, buckets)),
            np.float32(checks.number("top_p", top_p, 0, 1)),
            np.float32(checks.number("dot_quantile", dot_quantile, 0, 1)),
        )
        draw = self.program(
            prior_sampling.draw_embeddings_by_codes,
            "ar_prior",
            guided=scale != 1,
            truncated=top_k > 0 or top_p < 1,
            **static,
        )

        def run(clip, prior, tokens, text, seed, indices):
            return draw(prior, tokens, text, seed, indices, scale, *values)

        return run

    def decoder(self, *, upsampler_steps=None, report=None, **options):
        """What paints: the decoder by `options` (see options.settle), and upsamplers.

        That is (params of painters, conditions, seed, indices, eta, canvas) -> images.
        """
        scale, drawing = settle(self.stack, "decoder", **options)
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
                drawing=settle(self.stack, name, steps=upsampler_steps)[1],
                rounded=self.painters[-1] == name,
                report=report,
            )
            for name in names
        ]

        def run(params, conditions, seed, indices, eta, canvas):
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
