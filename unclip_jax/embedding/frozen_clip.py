"""The CLIP whose embeddings the other stages learn from, on all local devices."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.interop import (
    components,
    diffusers,
    kandinsky,
    native,
    public_clip,
    stable_unclip,
)
from unclip_jax.interop.export import tokenizer_folder
from unclip_jax.models.text_transformer import fill_captions
from unclip_jax.parallel.batched_runner import BatchedRunner
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.tokenizer import Tokenizer


class FrozenCLIP:
    """A CLIP with its tokenizer.

    Attributes:
      part: the model, see interop.components.
      tokenizer: its tokenizer.
      fingerprint: names the CLIP in records, runs and exports.
      batch_size: rows of every batch, a multiple of the devices' number.
      arrays: {name: (dtype, shape)} of what `embed` gives of an example.
      pad_id: what captions are filled up with before states are made of them; None:
        with the token that ends them.
    """

    def __init__(
        self,
        part: components.Component,
        tokenizer: Tokenizer,
        batch_size: int,
        text_states: bool = False,
        pad_id: int | None = None,
    ):
        """Raises UsageError when the tokenizer is another model's."""
        module = part.module
        for field in ("vocab_size", "eot_id"):
            ours, theirs = getattr(module, field), getattr(tokenizer, field)
            if ours != theirs:
                raise UsageError(
                    f"the CLIP has {field} {ours} but its tokenizer has {theirs}: "
                    "they do not belong together"
                )
        if batch_size < 1:
            raise UsageError(f"config.batch_size must be at least 1, got {batch_size}")
        self.part, self.tokenizer = part, tokenizer
        self.fingerprint = part.clip_fingerprint
        self.arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            "clip_image": ("float32", (module.embed_dim,)),
        }
        if module.text_projects:
            self.arrays["clip_text"] = self.arrays["clip_image"]
        self.pad_id = pad_id
        if text_states:
            shape = module.context_length, module.text_width
            self.arrays["text_states"] = "float16", shape
        # every process works off records of its own: no collectives between hosts
        self._runner = BatchedRunner(make_mesh(devices=jax.local_devices()), batch_size)
        self.batch_size = self._runner.batch_size
        self._params = self._runner.place_params(part.params)
        self._run = jax.jit(self._embed)
        self._run_text = jax.jit(self._embed_text)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        load_run: components.LoadRun,
        *,
        batch_size: int,
        text_states: bool = False,
        dtype: str = "float32",
    ) -> "FrozenCLIP":
        """From a native export, a public CLIP, or the folder of a run of stage clip.

        Public are the folders of transformers and OpenCLIP, with their tokenizer in
        them, and those of diffusers' unCLIPs, Kandinsky's prior and Stable unCLIP among
        them; texts have no embeddings in the last.

        With `text_states`, `embed` gives them too.

        Raises:
          FileNotFoundError: neither is there, or the tokenizer is missing.
          UsageError: a run of another stage, or broken files.
        """
        pad_id = None
        if native.is_export(folder):
            part = components.read_native(folder, "clip", dtype)
            tokens = native.part_folder(folder, native.TOKENIZER)
        elif public_clip.is_public_clip(folder):
            part, tokens = public_clip.read_public_clip(folder, dtype), folder
        elif pipelines := kandinsky.pipelines(pathlib.Path(folder)):
            read, _ = kandinsky.load_kandinsky(pipelines, ["clip"], dtype)
            part, tokens = read["clip"], kandinsky.tokenizer_folder(pipelines)
        elif stable_unclip.is_stable_unclip(pathlib.Path(folder)):
            root = pathlib.Path(folder)
            read, read_tokenizer = stable_unclip.load_stable_unclip(
                root, ["clip"], dtype
            )
            part, tokens = read["clip"], root / "tokenizer"
            if not part.module.text_projects:
                pad_id = stable_unclip.pad_id(tokens, read_tokenizer)
        elif diffusers.is_pipeline(folder):
            read, _ = diffusers.load_diffusers(folder, ["clip"], dtype)
            part, tokens = read["clip"], pathlib.Path(folder) / "tokenizer"
        else:
            part, meta = components.read_run(folder, "clip", load_run, dtype)
            tokens = tokenizer_folder(folder, meta["data_info"])
        tokenizer = Tokenizer.load(str(tokens), part.module.context_length)
        return cls(part, tokenizer, batch_size, text_states, pad_id)

    def embed_zeros(self) -> np.ndarray:
        """The raw embedding (D,) of an image of zeros, see kandinsky.encode_zeros."""
        return np.asarray(kandinsky.encode_zeros(self.part), np.float32)

    def embed(self, images: np.ndarray, tokens: np.ndarray):
        """What CLIP makes of at most batch_size pairs; returns before it is ready.

        Args:
          images: uint8 (N, S, S, 3) of CLIP's size (see interop.images.fit).
          tokens: int32 (N, L).

        Returns:
          {"clip_image", "clip_text"}: raw embeddings, float32 (batch_size, D), and
          "text_states" float16 (batch_size, L, W) if asked for; on the devices. The
          rows after the N-th are padding.
        """
        return self._run(self._params, *self._runner.place((images, tokens)))

    def embed_text(self, tokens: np.ndarray):
        """As `embed`, of captions alone: {"clip_text"} and "text_states"."""
        return self._run_text(self._params, self._runner.place(tokens))

    def _embed(self, params, images, tokens):
        module, variables = self.part.module, {"params": params}
        image = module.apply(variables, images, method="encode_image")
        return {"clip_image": image, **self._embed_text(params, tokens)}

    def _embed_text(self, params, tokens):
        module, variables = self.part.module, {"params": params}
        made: dict[str, Any] = {}
        if "clip_text" in self.arrays:
            made["clip_text"] = module.apply(variables, tokens, method="encode_text")
        if "text_states" in self.arrays:
            if self.pad_id is not None:
                tokens = fill_captions(tokens, module.eot_id, self.pad_id)
            states: Any = module.apply(variables, tokens, method="text_states")
            made["text_states"] = states.astype(jnp.float16)
        return made
