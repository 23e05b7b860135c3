"""Reads the parts of a stack from a folder, whichever format it has."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.files import sha256_folder
from unclip_jax.gaussian import Gaussian
from unclip_jax.interop import (
    components,
    diffusers,
    diffusers_lora,
    kandinsky,
    native,
    public_clip,
    stable_unclip,
)
from unclip_jax.interop.components import Component
from unclip_jax.models.layers import UNIT_SCALES
from unclip_jax.tokenizer import Tokenizer

TEXT_ENCODER = native.TEXT_ENCODER
# Where to find what a pipeline of diffusers lacks, to which nothing is exported.
ELSEWHERE = {
    "prior": "load a model that has one, such as Kandinsky 2.2 or a "
    "StableUnCLIPPipeline, or start from images (`variations` takes prompts beside "
    "them, for a decoder that sees captions)",
    "decoder": "name the folder of one as well, as "
    "kandinsky-2-2-prior,kandinsky-2-2-decoder",
    native.STATISTICS: "they come with a decoder that is trained here",
}
SHARED = ("embed_dim", "vocab_size", "context_length", "eot_id")


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """Parts of one unCLIP, as read.

    Attributes:
      origin: the folder, for messages; two folders have a comma between.
      parts: name -> Component; not necessarily all of native.PARTS, and any number of
        upsamplers.
      tokenizer: None when the folder has none.
      statistics: of the training embeddings; None when the folder has none.
    """

    origin: str
    parts: Mapping[str, Component]
    tokenizer: Tokenizer | None
    statistics: Gaussian | None = None

    def embedding_statistics(self) -> Gaussian:
        """Raises FileNotFoundError saying how to add them if they are not there."""
        if self.statistics is None:
            raise self._missing(native.STATISTICS)
        return self.statistics

    @property
    def upsamplers(self) -> tuple[str, ...]:
        """Names of the upsamplers, by rising resolution; not of their last networks."""
        names = [k for k in self.parts if native.kind_of(k) == "upsampler"]
        names = [k for k in names if not k.endswith(native.LAST)]
        return tuple(sorted(names, key=lambda k: self.parts[k].module.image_size))

    @property
    def tokenizer_folder(self) -> pathlib.Path:
        """Where the tokenizer was read from."""
        folders = [pathlib.Path(folder) for folder in self.origin.split(",")]
        names = ("prior_tokenizer", "tokenizer", "prior/tokenizer")
        places = [folder / name for folder in folders for name in names]
        # a public CLIP's lies beside its weights
        return next((place for place in places if place.is_dir()), folders[0])

    def part(self, kind: str) -> Component:
        """Raises FileNotFoundError saying how to add the part if it is not there."""
        if kind not in self.parts:
            raise self._missing(kind)
        return self.parts[kind]

    def _missing(self, name) -> FileNotFoundError:
        is_pipeline = any(map(diffusers.is_pipeline, split_folders(self.origin)))
        if name not in ELSEWHERE or not is_pipeline:
            return native.missing_part(self.origin, name, [*self.parts])
        have = ", ".join(sorted(self.parts)) or "nothing"
        return FileNotFoundError(
            f"{self.origin} has no {name} (it has {have}): {ELSEWHERE[name]}"
        )


def load_stack(
    folder: str | os.PathLike | Sequence[str | os.PathLike],
    kinds: str | Sequence[str] = native.KINDS,
    dtype: str = "float32",
    lora: str | os.PathLike | None = None,
) -> Stack:
    """Reads those parts of the `kinds` that the export in `folder` has.

    A model that is published in two folders is named by both of them, in a list or with
    a comma between: Kandinsky's prior and its decoder.

    "upsampler" stands for all upsamplers, "upsampler_256" for that one; each comes with
    the network of its last step, if it has one.

    `lora` is a file of adapters in diffusers' names, or its folder; they are merged
    into the prior and the decoder (see interop.diffusers_lora).

    Every format that can be sampled from is recognised here and nowhere else.

    Raises:
      FileNotFoundError: no such folder, or no export in it.
      UsageError: a format that is not supported, broken files, or parts that do not
        belong together.
    """
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    for kind in kinds:
        if native.kind_of(kind) not in native.KINDS:
            raise UsageError(f"parts: {kind!r} is none of {', '.join(native.KINDS)}")
    folders = split_folders(folder)
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"model folder {str(folder)!r} does not exist: name another, or make "
                f"it with `python -m unclip_jax.export --run=RUN --out={folder}`"
            )
    folder = folders[0]
    if found := [p for one in folders for p in kandinsky.pipelines(one)]:
        _check_all_are_used(folders, found)
        origin = ",".join(map(str, folders))
        stack = Stack(origin, *kandinsky.load_kandinsky(found, kinds, dtype))
    elif len(folders) > 1:
        raise UsageError(
            f"{' and '.join(map(str, folders))} are {len(folders)} folders, but not of "
            "one model that is published in several (Kandinsky 2.2): name one"
        )
    elif stable_unclip.is_stable_unclip(folder):
        stack = Stack(
            str(folder), *stable_unclip.load_stable_unclip(folder, kinds, dtype)
        )
    elif native.is_export(folder):
        stack = _read_native(folder, kinds, dtype)
    elif diffusers.is_pipeline(folder):
        stack = Stack(str(folder), *diffusers.load_diffusers(folder, kinds, dtype))
    elif public_clip.is_public_clip(folder):
        part = public_clip.read_public_clip(folder, dtype)
        tokenizer = Tokenizer.load(folder, part.module.context_length, warn=True)
        stack = Stack(str(folder), {part.kind: part}, tokenizer)
    else:
        raise FileNotFoundError(
            f"{folder} is not a model: neither {native.INDEX} nor {diffusers.INDEX} in "
            "it, nor the config of a public CLIP; make one with "
            f"`python -m unclip_jax.export --run=RUN --out={folder}`"
        )
    check_together(stack)
    if lora is None:
        return stack
    parts = dict(stack.parts)
    for kind, params in diffusers_lora.merge_lora(parts, lora).items():
        parts[kind] = dataclasses.replace(parts[kind], params=params)
    return dataclasses.replace(stack, parts=parts)


def split_folders(
    folder: str | os.PathLike | Sequence[str | os.PathLike],
) -> list[pathlib.Path]:
    """The folder, or the folders of a list or with commas between."""
    if isinstance(folder, str) and not pathlib.Path(folder).is_dir():
        folder = folder.split(",")
    folders = [folder] if isinstance(folder, str | os.PathLike) else folder
    return [pathlib.Path(one) for one in folders]


def hash_model(folder: str | os.PathLike | Sequence[str | os.PathLike]) -> str:
    """The sha256 of all files of a model; of several folders, with commas between."""
    return ",".join(map(sha256_folder, split_folders(folder)))


def _check_all_are_used(folders, pipelines):
    for folder in folders:
        if not any(path == folder or path.parent == folder for path in pipelines):
            raise UsageError(
                f"{folder} is no pipeline of Kandinsky 2.2, which the other folder is"
            )


def _read_native(folder, kinds, dtype):
    have = native.read_index(folder)["parts"]
    if not have:
        raise UsageError(
            f"{folder}/{native.INDEX} lists no parts: export a run into the folder"
        )
    names = [k for kind in kinds for k in have if kind in _names_for(k)]
    read = {k: components.read_native(folder, k, dtype) for k in names}
    if (guide := read.pop(native.GUIDE, None)) and "decoder" in read:
        read["decoder"] = _with_guide(folder, read["decoder"], guide)
    lengths = [getattr(p.module, "context_length", None) for p in read.values()]
    tokenizer = None
    if native.TOKENIZER in have and any(lengths):
        length = next(filter(None, lengths))
        path = native.part_folder(folder, native.TOKENIZER)
        tokenizer = Tokenizer.load(path, length, warn=True)
    statistics = None
    if native.STATISTICS in have and "decoder" in read:
        tables = native.read_statistics(folder)
        statistics = _statistics(folder, tables, read["decoder"].module.embed_dim)
    return Stack(str(folder), read, tokenizer, statistics)


def _with_guide(folder, decoder, guide) -> Component:
    """The decoder with the parameters of the one that guides it, as "guide"."""
    same = guide.module == decoder.module and all(
        guide.config["diffusion"].get(name) == decoder.config["diffusion"].get(name)
        for name in ("schedule", "num_steps", "shift", "prediction")
    )
    if not same:
        raise UsageError(
            f"the {native.GUIDE} of {folder} is another model than its decoder, or of "
            "another process: export an earlier checkpoint of the same config"
        )
    params = {**decoder.params, "guide": guide.params}
    return dataclasses.replace(decoder, params=params)


def _statistics(folder, tables, dim) -> Gaussian:
    unit = tables.get("unit", np.zeros((), bool))  # of an older export: as they are
    kinds = {"mean": ((dim,), "f"), "cov": ((dim, dim), "f"), "unit": ((), "b")}
    for name, (shape, kind) in kinds.items():
        table = unit if name == "unit" else tables.get(name)
        if (
            table is None
            or (table.shape, table.dtype.kind) != (shape, kind)
            or not np.isfinite(table).all()
        ):
            what = "missing" if table is None else f"{table.dtype} {table.shape}"
            numbers = "finite floats" if kind == "f" else "booleans"
            raise UsageError(
                f"{folder}/{native.STATISTICS}: {name} is {what}; expected {numbers} "
                f"of shape {shape}: export the decoder again"
            )
    if others := tables.keys() - kinds.keys():
        raise UsageError(
            f"{folder}/{native.STATISTICS} has {', '.join(sorted(others))} besides "
            f"{', '.join(kinds)}: export the decoder again"
        )
    return Gaussian(tables["mean"], tables["cov"], bool(unit))


def _names_for(part):
    return part, part.removesuffix(native.LAST), native.kind_of(part)


def check_together(stack: Stack) -> None:
    """Raises UsageError naming what the parts and the tokenizer disagree about."""
    for field in SHARED:
        values = {
            k: getattr(p.module, field)
            for k, p in stack.parts.items()
            # a text encoder of its own makes no embeddings
            if hasattr(p.module, field) and (k, field) != (TEXT_ENCODER, "embed_dim")
        }
        if stack.tokenizer is not None and field != "embed_dim":
            values["tokenizer"] = getattr(stack.tokenizer, field)
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{kind} {value}" for kind, value in values.items())
            raise UsageError(
                f"the parts of {stack.origin} do not fit together: {field} is {listed}"
            )
    made_for = {
        k: stack.parts[k].clip_fingerprint for k in native.PARTS if k in stack.parts
    }
    if len(set(filter(None, made_for.values()))) > 1:
        listed = ", ".join(f"{kind} {str(v)[:12]}..." for kind, v in made_for.items())
        raise UsageError(
            f"the parts of {stack.origin} do not fit together: they are of different "
            f"CLIPs ({listed}); load those that were trained with one"
        )
    stages = [k for k in ("decoder", *stack.upsamplers) if k in stack.parts]
    for before, after in zip(stages, stages[1:], strict=False):
        size = stack.parts[before].module.image_size
        low_res_size = stack.parts[after].module.low_res_size
        if size != low_res_size:
            raise UsageError(
                f"the parts of {stack.origin} do not fit together: {after} enlarges "
                f"pictures of {low_res_size} pixels, {before} makes them of {size}; "
                "leave it out with `parts`, or add the one between"
            )
    for name in stack.upsamplers:
        last = stack.parts.get(name + native.LAST)
        if last is not None and last.module != stack.parts[name].module:
            raise UsageError(
                f"the parts of {stack.origin} do not fit together: {name} and "
                f"{last.kind} must be models of the same fields"
            )
    both = [stack.parts[k] for k in ("decoder", "autoencoder") if k in stack.parts]
    if len(both) == 2 and both[0].module.is_latent:
        decoder, autoencoder = (part.module for part in both)
        denoised, decoded = decoder.image_channels, autoencoder.latent_channels
        if denoised != decoded:
            raise UsageError(
                f"the parts of {stack.origin} do not fit together: the decoder makes "
                f"latents of {denoised} channels, the autoencoder takes {decoded}"
            )
    made = [str(part.meta.get("autoencoder_fingerprint") or "") for part in both]
    if len(made) == 2 and all(made) and made[0] != made[1]:
        raise UsageError(
            f"the parts of {stack.origin} do not fit together: the decoder learnt "
            f"latents of the autoencoder {made[0][:12]}..., the one there is "
            f"{made[1][:12]}...: export the one that it was trained with"
        )
    # a unit-norm prior has forgotten the norm that a standardising decoder wants; a
    # unit-norm decoder takes any norm, so the two scales need not be the same
    unit_norm = {
        kind: stack.parts[kind].config["embedding"] in UNIT_SCALES
        for kind in ("decoder", "prior", "ar_prior")
        if kind in stack.parts
    }
    for prior in ("prior", "ar_prior"):
        if unit_norm.get(prior) and not unit_norm.get("decoder", True):
            convention = {k: stack.parts[k].config["embedding"] for k in unit_norm}
            raise UsageError(
                f"the parts of {stack.origin} do not fit together: the {prior} makes "
                f"embeddings of norm 1 ({convention[prior]}), the decoder wants "
                f"{convention['decoder']}; train both with one stage_options.embedding"
            )
