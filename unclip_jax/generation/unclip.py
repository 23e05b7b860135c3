"""UnCLIP: text to images, images to images, and CLIP's two encoders."""

import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from unclip_jax.diffusion import samplers
from unclip_jax.generation import checks, pipeline
from unclip_jax.generation.loading import Stack, load_stack
from unclip_jax.generation.manipulations import Manipulations
from unclip_jax.generation.programs import Programs
from unclip_jax.interop import diffusers, native
from unclip_jax.interop.images import fit
from unclip_jax.parallel.mesh import make_mesh

Progress = Callable[[int, int], None]  # (rows done, of all): at first, after each batch


class UnCLIP(Manipulations):
    """A frozen stack. Make one with `UnCLIP.load(folder)`.

    Row i of every result depends on (seed, first + i) and its own input only. Lists
    of any length are worked off in batches; a program is compiled for the first one
    and reused by later calls with the same options.

    Attributes:
      stack: the parts as read.
      tokenizer: encodes captions; None if the folder had none.
    """

    def __init__(self, stack: Stack, mesh: Mesh | None = None, batch_size: int = 32):
        checks.integer("batch_size", batch_size, 1, 2**20)
        self.stack = stack
        self.tokenizer = stack.tokenizer
        self._painters = ("decoder", *stack.upsamplers)  # whose work is the picture
        self._programs = Programs(mesh or make_mesh(), batch_size)
        self._params: dict = {}

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        *,
        parts: Sequence[str] = native.KINDS,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        batch_size: int = 32,
    ) -> "UnCLIP":
        """Loads an export.

        Args:
          folder: the export; it may lack parts that are not used later.
          parts: which of its parts to load. Without "upsampler", pictures stay as
            large as the decoder draws them.
          dtype: type of the computation, "float32" or "bfloat16".
          mesh: devices; all of them, by default.
          batch_size: rows computed at a time (rounded up to fill the devices).

        Raises:
          FileNotFoundError: no such folder, or no export in it.
          ValueError: broken files, or parts that do not belong together.
        """
        return cls(load_stack(folder, parts, dtype), mesh, batch_size)

    def save_diffusers(self, folder: str | os.PathLike, dtype: str = "float32") -> None:
        """Writes the stack as folders that the classes of diffusers load.

        Raises ValueError for a part that they cannot hold.
        """
        tokenizer = pathlib.Path(self.stack.origin) / native.TOKENIZER
        diffusers.save_diffusers(self.stack.parts, folder, tokenizer, dtype)

    @property
    def image_size(self) -> int:
        """Side of the pictures that text2image and variations draw, enlarged."""
        return self.stack.part(self._painters[-1]).module.image_size

    @property
    def clip_image_size(self) -> int:
        """Side of the pictures that CLIP takes."""
        return self.stack.part("clip").module.image_size

    @property
    def draw_size(self) -> int:
        """Side of the pictures as the decoder draws them, before enlargement."""
        return self.stack.part("decoder").module.image_size

    def encode_image(self, images, progress: Progress | None = None) -> np.ndarray:
        """uint8 (N, S, S, 3), S = clip_image_size -> raw embeddings (N, D) float32."""
        images = checks.images(images, self.clip_image_size, "CLIP")
        return self._map(
            lambda params, x: self._program(pipeline.encode_image, "clip")(params, x),
            ("clip",),
            (images,),
            progress,
        )

    def encode_text(self, prompts, progress: Progress | None = None) -> np.ndarray:
        """N captions -> raw embeddings (N, D) float32."""
        return self._map(
            lambda params, x: self._program(pipeline.encode_text, "clip")(params, x),
            ("clip",),
            (self._tokens(prompts),),
            progress,
        )

    def text2image(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        prior_guidance: float = 4.0,
        decoder_guidance: float = 8.0,
        num_candidates: int = 2,
        prior_steps: int | None = None,
        decoder_steps: int | None = None,
        upsampler_steps: int | None = None,
        prior_sampler: str | None = None,
        decoder_sampler: str | None = None,
        eta: float = 0.0,
        prior: str = "auto",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        dot_quantile: float = 0.5,
        first: int = 0,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Draws one picture per prompt.

        Args:
          prompts: N captions.
          seed: of all randomness.
          prior_guidance, decoder_guidance: classifier-free guidance; 1 is none.
          num_candidates: embeddings drawn per prompt, of which the one nearest to the
            text's is decoded.
          prior_steps, decoder_steps, upsampler_steps: sampling steps of diffusion.
            None is what the model says is usual for it, else 64, 50 and 27.
          prior_sampler, decoder_sampler: names in diffusion.samplers.SAMPLERS; None is
            what the model says, else "ddpm" and "ddim".
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
          progress: called with (0, total), then (done, total) after each batch.

        Returns:
          uint8 (N, S, S, 3), S = image_size.

        Raises:
          ValueError: what is wrong with an argument.
          FileNotFoundError: the export lacks a part; the message says how to add it.
        """
        diffusion = prior_steps, prior_sampler
        codes = temperature, top_k, top_p, dot_quantile
        kind, embed = self._prior(
            prior, prior_guidance, num_candidates, diffusion, codes
        )
        decode = self._decoder(
            decoder_guidance, decoder_steps, decoder_sampler, upsampler_steps
        )
        eta = np.float32(checks.number("eta", eta, 0))
        seed = _seed(seed)
        tokens = self._tokens(prompts)

        def draw(clip, prior, *rest):
            *painters, tokens, null, indices = rest
            z = embed(clip, prior, tokens, seed, indices)
            canvas = pipeline.Canvas()
            return decode(painters, (z, null, tokens), seed, indices, eta, canvas)

        n = len(tokens)
        arrays = tokens, np.zeros(n, bool), _indices(first, n)
        return self._map(draw, ("clip", kind, *self._painters), arrays, progress)

    def sample_embeddings(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        guidance: float = 4.0,
        num_candidates: int = 2,
        steps: int | None = None,
        sampler: str | None = None,
        prior: str = "auto",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        dot_quantile: float = 0.5,
        first: int = 0,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """The first half of text2image: raw image embeddings (N, D) float32."""
        diffusion = steps, sampler
        codes = temperature, top_k, top_p, dot_quantile
        kind, embed = self._prior(prior, guidance, num_candidates, diffusion, codes)
        seed, tokens = _seed(seed), self._tokens(prompts)

        def draw(clip, prior, tokens, indices):
            return embed(clip, prior, tokens, seed, indices)

        arrays = tokens, _indices(first, len(tokens))
        return self._map(draw, ("clip", kind), arrays, progress)

    def decode(
        self,
        embeddings: np.ndarray | None,
        prompts: str | Sequence[str] | None = None,
        seed: int = 0,
        guidance: float = 8.0,
        steps: int | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        first: int = 0,
        noise: np.ndarray | None = None,
        keep: tuple[np.ndarray, np.ndarray] | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """The second half of text2image: pictures of raw embeddings (N, D).

        Without prompts the decoder sees the empty caption, without embeddings the
        null embedding: what it was trained with where either was dropped.

        Args:
          embeddings: text embeddings do as well; the decoder was not trained on them.
          prompts, seed, guidance, steps, sampler, eta, first, progress: as for
            text2image.
          noise: x_T float32 (N, s, s, 3), s = draw_size, instead of drawing it. One
            of `invert` is undone without guidance with the same steps and eta = 0.
          keep: (pictures uint8 (N, s, s, 3), masks bool (N, s, s)): what is True in
            the mask stays as it is in the picture, but for later enlargement.
        """
        rows = self._conditions(embeddings, prompts)
        n = len(rows[0])
        side = self.draw_size
        canvas = pipeline.Canvas()
        if noise is not None:
            canvas = canvas._replace(x_T=checks.noise(noise, (n, side, side, 3)))
        if keep is not None:
            known, mask = checks.known(*keep, (n, side, side))
            canvas = canvas._replace(known=known, keep=mask)
        run = self._decoder(guidance, steps, sampler)
        eta, seed = np.float32(checks.number("eta", eta, 0)), _seed(seed)

        def draw(*rest):
            *painters, conditions, indices, canvas = rest
            return run(painters, conditions, seed, indices, eta, canvas)

        arrays = rows, _indices(first, n), canvas
        return self._map(draw, self._painters, arrays, progress)

    def invert_pixels(
        self,
        images: np.ndarray,
        embeddings: np.ndarray | None,
        prompts: str | Sequence[str] | None = None,
        guidance: float = 1.0,
        steps: int = 50,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """The noise from which `decode` draws pictures, by DDIM inversion.

        Args:
          images: uint8 (N, s, s, 3), s = draw_size.
          embeddings, prompts: what the decoder is conditioned on.
          guidance, steps: those of the later `decode`; guidance above 1 makes it
            coarse.

        Returns:
          x_T, float32 (N, s, s, 3).
        """
        images = checks.images(images, self.draw_size, "the decoder")
        rows = self._conditions(embeddings, prompts)
        if len(images) != len(rows[0]):
            raise ValueError(f"{len(rows[0])} embeddings for {len(images)} images")
        scale = checks.number("decoder guidance", guidance)
        run = self._program(
            pipeline.invert_images,
            "decoder",
            steps=self._steps("decoder", steps),
            guided=scale != 1,
        )

        read = self._caption_reader()

        def invert(params, x, rows):
            return run(params, x, *read(rows), np.float32(scale))

        return self._map(invert, ("decoder",), (_unit_range(images), rows), progress)

    def draw_noise(self, count: int, seed: int = 0, first: int = 0) -> np.ndarray:
        """The x_T that `decode` would draw: float32 (count, s, s, 3)."""
        side = self.draw_size
        keys = pipeline.start_keys(_seed(seed), _indices(first, count))
        return np.asarray(samplers.normal(keys, (side, side, 3)))

    def fit_for_clip(self, images) -> np.ndarray:
        """uint8 pictures of any size -> (N, S, S, 3) as encode_image takes them."""
        return np.stack([fit(i, self.clip_image_size) for i in checks.pictures(images)])

    def _conditions(self, embeddings, prompts):
        """Rows of what the decoder sees: (embeddings, whether null, tokens)."""
        dim = self.stack.part("decoder").module.embed_dim
        if embeddings is None and prompts is None:
            raise ValueError("neither embeddings nor prompts: give one of them")
        null = embeddings is None
        if null:
            embeddings = np.zeros((len(checks.prompts(prompts)), dim), np.float32)
        embeddings = checks.embeddings(embeddings, dim)
        n = len(embeddings)
        tokens = self._tokens([""] * n if prompts is None else prompts)
        if len(tokens) != n:
            raise ValueError(f"{len(tokens)} prompts for {n} embeddings")
        return embeddings, np.full(n, null), tokens

    def _steps(self, kind, steps):
        diffusion = self.stack.part(kind).config["diffusion"]
        most = diffusion["num_steps"]
        if steps is None:
            usual = {"prior": 64, "decoder": 50}.get(kind, 27)
            steps = min(diffusion.get("sampling_steps", usual), most)
        return checks.integer(f"{kind} steps", steps, 1, most)

    def _sampler(self, kind, sampler):
        if sampler is None:
            usual = {"prior": "ddpm"}.get(kind, "ddim")
            sampler = self.stack.part(kind).config["diffusion"].get("sampler", usual)
        return checks.sampler(f"{kind} sampler", sampler)

    def _tokens(self, prompts) -> np.ndarray:
        prompts = checks.prompts(prompts)
        if self.tokenizer is None:
            have = self.stack.parts
            raise native.missing_part(self.stack.origin, native.TOKENIZER, [*have])
        return self.tokenizer.encode(prompts)

    def _program(self, function, kind, **static):
        return self._programs.compiled(function, self.stack.part(kind), **static)

    def _prior(self, prior, scale, num_candidates, diffusion, codes):
        """The part that `prior` means, and what draws from it.

        That is (clip params, its params, tokens, seed, indices) -> embeddings.
        `diffusion` and `codes` are the options that only one kind of prior has.
        """
        self.stack.part("clip")
        kind = checks.prior(prior, self.stack.parts)
        static = {
            "guided": checks.number("prior guidance", scale) != 1,
            "num_candidates": checks.integer("num_candidates", num_candidates, 1, 1024),
        }
        encode = self._program(pipeline.encode_text, "clip")
        if kind == "prior":
            draw = self._diffusion_prior(np.float32(scale), static, *diffusion)
        else:
            draw = self._code_prior(np.float32(scale), static, *codes)

        def run(clip, prior, tokens, seed, indices):
            return draw(clip, prior, tokens, encode(clip, tokens), seed, indices)

        return kind, run

    def _diffusion_prior(self, scale, static, steps, sampler):
        part = self.stack.part("prior")
        text_states = self._program(pipeline.text_states, "clip")
        on_states = part.module.caption == "clip_states"
        draw = self._program(
            pipeline.draw_embeddings,
            "prior",
            steps=self._steps("prior", steps),
            sampler=self._sampler("prior", sampler),
            **static,
        )

        def run(clip, prior, tokens, text, seed, indices):
            states = text_states(clip, tokens) if on_states else None
            return draw(prior, tokens, text, seed, indices, scale, states)

        return run

    def _code_prior(self, scale, static, temperature, top_k, top_p, dot_quantile):
        buckets = self.stack.part("ar_prior").module.num_buckets
        values = (
            np.float32(checks.number("temperature", temperature, 0)),
            np.int32(checks.integer("top_k", top_k, 0, buckets)),
            np.float32(checks.number("top_p", top_p, 0, 1)),
            np.float32(checks.number("dot_quantile", dot_quantile, 0, 1)),
        )
        draw = self._program(
            pipeline.draw_embeddings_by_codes,
            "ar_prior",
            truncated=top_k > 0 or top_p < 1,
            **static,
        )

        def run(clip, prior, tokens, text, seed, indices):
            return draw(prior, tokens, text, seed, indices, scale, *values)

        return run

    def _decoder(self, scale, steps, sampler, upsampler_steps=None):
        """(params of _painters, conditions, seed, indices, eta, canvas) -> images."""
        scale = checks.number("decoder guidance", scale)
        draw = self._program(
            pipeline.draw_images,
            "decoder",
            steps=self._steps("decoder", steps),
            sampler=self._sampler("decoder", sampler),
            guided=scale != 1,
            rounded=self._painters[-1] == "decoder",
        )
        read, names = self._caption_reader(), self._painters[1:]
        larger = [
            self._program(
                pipeline.enlarge_images,
                name,
                steps=self._steps(name, upsampler_steps),
                sampler=self._sampler(name, None),
                rounded=self._painters[-1] == name,
            )
            for name in names
        ]

        def run(params, conditions, seed, indices, eta, canvas):
            first, *rest = params
            noisy = seed, indices, np.float32(scale), eta, canvas
            images = draw(first, *read(conditions), *noisy)
            for name, enlarge, weights in zip(names, larger, rest, strict=True):
                last = name + native.LAST
                last = self._placed(last) if last in self.stack.parts else None
                images = enlarge(weights, images, seed, indices, last)
            return images

        return run

    def _caption_reader(self):
        """(.., tokens) -> (.., tokens, what the decoder needs of CLIP for them)."""
        if self.stack.part("decoder").module.caption != "clip_states":
            return lambda conditions: (*conditions, (None, None))
        encode = self._program(pipeline.encode_text, "clip")
        states = self._program(pipeline.text_states, "clip")

        def read(conditions):
            clip, tokens = self._placed("clip"), conditions[-1]
            return *conditions, (encode(clip, tokens), states(clip, tokens))

        return read

    def _map(self, function, kinds, arrays, progress) -> np.ndarray:
        """function(*params of kinds, *rows) over batches of the arrays' rows.

        `arrays` is a tuple of arrays and of pytrees of them.
        """
        params = [self._placed(kind) for kind in kinds]
        total, results = len(jax.tree.leaves(arrays)[0]), []
        if progress is not None:
            progress(0, total)
        for chunk in self._programs.chunks(total):
            rows = jax.tree.map(lambda a, chunk=chunk: a[chunk], arrays)
            rows = self._programs.place(rows, total)
            batch = function(*params, *rows)
            results.append(self._programs.fetch(batch, chunk.stop - chunk.start))
            if progress is not None:
                progress(chunk.stop, total)
        return np.concatenate(results)

    def _placed(self, kind):
        if kind not in self._params:
            part = self.stack.part(kind)
            self._params[kind] = self._programs.place_params(part.params)
        return self._params[kind]


def _seed(seed: int) -> np.uint32:
    return np.uint32(checks.integer("seed", seed, 0, 2**32 - 1))


def _indices(first: int, count: int) -> np.ndarray:
    first = checks.integer("first", first, 0, 2**31 - 1 - count)
    return np.arange(first, first + count, dtype=np.int32)


def _unit_range(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 127.5 - 1
