"""UnCLIP: text to images, images to images, and CLIP's two encoders."""

import os
import typing
from collections.abc import Sequence

from jax.sharding import Mesh

from unclip_jax.files import staged_folder
from unclip_jax.generation.editing import Editing
from unclip_jax.generation.loading import load_stack
from unclip_jax.interop import diffusers, kandinsky, native, stable_unclip
from unclip_jax.parallel.compilation_cache import use_compilation_cache


class UnCLIP(Editing):
    """A frozen stack. Make one with `UnCLIP.load(folder)`.

    Row i of every result depends on (seed, first + i) and its own input only. Lists
    of any length are worked off in batches; a program is compiled for the first one
    and reused by later calls with the same options.

    Attributes:
      stack: the parts as read.
      tokenizer: encodes captions; None if the folder had none.
    """

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        parts: str | Sequence[str] = native.KINDS,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        batch_size: int = 32,
        lora: str | os.PathLike | None = None,
    ) -> typing.Self:
        """Loads an export, and lets jax keep the programs that it compiles.

        Args:
          folder: the export; it may lack parts that are not used later. A model that
            is published in two folders is named by both: [prior, decoder].
          parts: which of its parts to load. Without "upsampler", pictures stay as
            large as the decoder draws them.
          dtype: type of the computation, "float32" or "bfloat16".
          mesh: devices; all of them, by default.
          batch_size: rows computed at a time (rounded up to fill the devices).
          lora: adapters of the prior or the decoder in diffusers' names, a file or its
            folder (`export --format=lora`); they are merged.

        Raises:
          FileNotFoundError: no such folder, or no export in it.
          UsageError: broken files, or parts that do not belong together.
        """
        use_compilation_cache()
        return cls(load_stack(folder, parts, dtype, lora), mesh, batch_size)

    def save_diffusers(self, folder: str | os.PathLike, dtype: str = "float32") -> None:
        """Writes the stack as folders that the classes of diffusers load.

        A stack that draws latents is written as Kandinsky's two pipelines, in prior/
        and decoder/, or as Stable unCLIP's; another as an UnCLIPPipeline. What is in
        `folder` already under the names of these files is replaced.

        Raises UsageError for a part that they cannot hold, with nothing written.
        """
        library, decoder = diffusers, self.stack.parts.get("decoder")
        if "autoencoder" in self.stack.parts:
            is_stable = decoder is not None and decoder.module.extra == "noise_level"
            library = stable_unclip if is_stable else kandinsky
        with staged_folder(folder) as new:
            for part in self.stack.parts.values():
                library.write_part(new, part, dtype, self.stack.tokenizer_folder)
