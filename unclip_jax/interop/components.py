"""Trained models ready to run: a module as its config says and parameters that fit."""

import dataclasses
import functools
import math
import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax import models
from unclip_jax.diffusion import analytic, process, samplers
from unclip_jax.diffusion.samplers.ancestral import VARIANCES
from unclip_jax.diffusion.schedule import Schedule, make_schedule
from unclip_jax.errors import UsageError
from unclip_jax.interop import native
from unclip_jax.interop.tensor_checks import check_tensors
from unclip_jax.models.decoder import HINT_FACTOR
from unclip_jax.models.embedding_prior import example_conditions
from unclip_jax.tokenizer import Tokenizer

# (folder of a run) -> (parameters, meta), as training.checkpoint.load_run
LoadRun = Callable[[str], tuple[Mapping[str, Any], Mapping[str, Any]]]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True, eq=False)
class Component:
    """A trained model.

    Attributes:
      kind: one of native.PARTS, or "upsampler_256" with its resolution.
      module: the Linen module, computing in the dtype asked for.
      params: nested dict of numpy arrays.
      config: {"model": fields, "diffusion": {...}, ...}, as the stage exported it.
      clip_fingerprint: the CLIP (of an embedding prior: the encoder) it is, or whose
        embeddings it learnt from; None for an upsampler or an autoencoder, which know
        of none.
      meta: what else is known of it (step, training config, ...).
      analytic: (T,) float64, the statistic of diffusion.analytic; None: not known.
    """

    kind: str
    module: nn.Module
    params: Mapping[str, Any]
    config: Mapping[str, Any]
    clip_fingerprint: str | None
    meta: Mapping[str, Any]
    analytic: np.ndarray | None = None

    @property
    def noise_schedule(self) -> Schedule:
        """The process that a diffusion part was trained on."""
        diffusion = self.config["diffusion"]
        names = "schedule", "num_steps", "shift"  # of older parts, no shift
        return make_schedule(*(diffusion.get(name) for name in names))


def read_native(
    folder: str | os.PathLike, kind: str, dtype: str = "float32"
) -> Component:
    """The part `kind` of a native export.

    Raises what native.read_part does, and UsageError when the tensors do not fit.
    """
    config, params, meta = native.read_part(folder, kind)
    where = f"the {kind} of {folder}"
    part = build_component(kind, config, params, meta, dtype=dtype, where=where)
    table = native.read_analytic(folder, kind)
    if table is None:
        return part
    try:
        points = table["timesteps"], table["means"]
        statistic = analytic.interpolate(part.noise_schedule, *points)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(
            f"{native.ANALYTIC} of {where} is not a table of variances ({error}): make "
            "it again with `python -m unclip_jax.estimate_variance`"
        ) from error
    return dataclasses.replace(part, analytic=statistic)


def read_run(
    folder: str | os.PathLike, kind: str, load_run: LoadRun, dtype: str = "float32"
) -> tuple[Component, Mapping[str, Any]]:
    """(the part that a run of stage `kind` trained, the run's meta).

    Raises what `load_run` and `build_component` do, and UsageError for a run of another
    stage.
    """
    params, meta = load_run(str(folder))
    described, where = meta["export"], f"the {kind} of {folder}"
    if described["part"] != kind:
        raise UsageError(
            f"config.{kind} {str(folder)!r} is a run of stage {described['part']!r}; "
            f"expected one of stage {kind!r}"
        )
    config = described["config"]
    return build_component(kind, config, params, {}, dtype=dtype, where=where), meta


def build_component(
    kind: str,
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    meta: Mapping[str, Any],
    *,
    dtype: str = "float32",
    where: str,
) -> Component:
    """Builds a Component, checking that `params` fit the module `config` describes.

    Raises:
      UsageError: unknown dtype or model field; missing, unexpected or misshapen
        tensors; `where` says whose they are.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    model = native.kind_of(kind)
    if not isinstance(config.get("model"), Mapping):
        raise UsageError(f"{where}: its config has no fields of a model")
    embedding = config.get("embedding")
    if kind in ("prior", "ar_prior", "decoder") and not isinstance(embedding, str):
        raise UsageError(
            f"{where}: its config says {embedding!r} of 'embedding', the space of "
            "CLIP embeddings, expected a name such as 'standardize'"
        )
    if "diffusion" in config:
        _check_diffusion(config["diffusion"], f"{where}: diffusion")
    module = models.build(model, config["model"], DTYPES[dtype], f"{where}: model")
    try:
        shapes = param_shapes(model, module)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UsageError(
            f"{where}: its fields do not make a model ({error})"
        ) from error
    check_tensors(params, shapes, where)
    if kind == "clip":
        # what was stored as bfloat16 is still that CLIP
        fingerprint = meta.get("clip_fingerprint")
        fingerprint = fingerprint or native.clip_fingerprint(config, params)
    else:
        known = kind in (*native.PARTS, native.GUIDE, *native.EMBEDDING_PRIORS)
        fingerprint = meta.get("clip_fingerprint") if known else None
    return Component(kind, module, params, config, fingerprint, meta)


def _check_diffusion(options, where: str) -> None:
    """Raises UsageError for a process, or a recommendation, that cannot be."""
    if not isinstance(options, Mapping):
        raise UsageError(f"{where} is {options!r}, expected options by name")
    number = numbers.Real
    expected = {
        "schedule": str,
        "num_steps": int,
        "prediction": str,
        "shift": number | None,
        "clip": number | None,
        "sampler": str | None,
        "sampling_steps": int | str | None,
        "variance": str | None,
        "guidance": number | None,
    }
    for name, kind in expected.items():
        value = options.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UsageError(f"{where}.{name} is {value!r}, which it cannot be")
    for name, values in (
        ("prediction", process.PREDICTIONS),
        ("sampler", (None, *samplers.SAMPLERS)),
        ("variance", (None, *VARIANCES)),
    ):
        if options.get(name) not in values:
            raise UsageError(
                f"{where}.{name} is {options[name]!r}, expected one of "
                f"{', '.join(filter(None, values))}"
            )
    if not all(math.isfinite(options.get(n) or 0) for n in ("guidance", "clip")):
        raise UsageError(f"{where}: guidance and clip must be finite")
    try:
        shift = options.get("shift")
        schedule = make_schedule(options["schedule"], options["num_steps"], shift)
        if steps := options.get("sampling_steps"):
            samplers.timesteps("ddim", schedule, steps)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _shape(*size, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((1, *size), dtype)


def param_shapes(kind: str, module: Any) -> dict[str, Any]:
    """Nested dict of ShapeDtypeStruct: the parameters of `module`; costs no memory."""
    if kind in native.EMBEDDING_PRIORS:  # their dicts of conditions have no hash
        noised = _shape(*module.target_shape), _shape(dtype=jnp.int32)
        noised = (None, None) if module.single_pass else noised
        example = jax.eval_shape(lambda: example_conditions(module))
        inputs = *noised, example, _shape(dtype=bool)
        return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return _param_shapes(kind, module)


@functools.cache  # of a UNet it takes a second
def _param_shapes(kind: str, module: Any) -> dict[str, Any]:
    shape, key = _shape, jax.random.key(0)
    if kind == "upsampler":
        side, small = module.image_size, module.low_res_size
        x, t, low_res = shape(side, side, 3), shape(), shape(small, small, 3)
        return jax.eval_shape(module.init, key, x, t, low_res)["params"]
    if kind == "autoencoder":
        image = shape(module.factor, module.factor, 3)
        return jax.eval_shape(module.init, key, image)["params"]
    tokens = shape(module.context_length, dtype=jnp.int32)
    side = 1 if kind in ("prior", "ar_prior") else module.image_size
    channels = getattr(module, "image_channels", 3)
    image, embedding = shape(side, side, channels), shape(module.embed_dim)
    t, drop = shape(dtype=jnp.int32), shape(dtype=bool)
    states = None
    if getattr(module, "caption", "tokens") == "clip_states":
        width = module.text_width if kind == "prior" else module.text_states_width
        states = shape(module.context_length, width or module.embed_dim)
    elif getattr(module, "caption", None) == "text_states":
        states = shape(module.context_length, module.text_width)
    inputs = {
        "clip": (shape(side, side, 3, dtype=jnp.uint8), tokens),
        "prior": (embedding, t, tokens, embedding, drop, states),
        "ar_prior": (embedding, tokens, embedding, drop),
        "decoder": (image, t, embedding, tokens, drop, drop, embedding, states),
    }[kind]
    extra = {
        "inpaint": {"extra": shape(side, side, channels + 1)},
        "noise_level": {"extra": t},
        "hint": {"extra": shape(HINT_FACTOR * side, HINT_FACTOR * side, 3)},
    }.get(getattr(module, "extra", "none"), {})
    return jax.eval_shape(module.init, key, *inputs, **extra)["params"]


def encode_empty_caption(clip: Component, tokenizer: Tokenizer):
    """CLIP's text states (L, W) and embedding (D,) of the empty caption."""

    @jax.jit
    def encode(params, tokens):
        return tuple(
            clip.module.apply({"params": params}, tokens, method=method)[0]
            for method in ("text_states", "encode_text")
        )

    states, embedding = encode(clip.params, tokenizer.encode([""]))
    return np.asarray(states, np.float32), np.asarray(embedding)
