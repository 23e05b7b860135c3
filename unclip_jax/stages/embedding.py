"""What the stages share that predict an embedding from conditions of any kind.

The data are aligned arrays (data/aligned), or records of CLIP embeddings: then the
target is clip_image, and the conditions are the caption's tokens, clip_text and, where
they are kept, CLIP's text states.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError
from unclip_jax.models.conditions import (
    FLOATS,
    Condition,
    batch_spec,
    merge_repeats,
)
from unclip_jax.models.embedding_prior import EmbeddingPrior, example_conditions

# stage_options.embedding besides those of stages.with_embedding_space
PER_TOKEN = "standardize_tokens"
FROM_DATA = ("target_shape", "conditions", "unit_norm", "single_pass")


@dataclasses.dataclass(frozen=True)
class ConditionOptions:
    """The config.stage_options of these stages; each adds its own."""

    conditions: tuple[str, ...] = ()  # those that are used; (): all of the data's
    drop: float = 0.1  # rows trained without any condition, for guidance
    # name -> rows trained without this one, independently of the others
    drop_each: dict[str, float] = dataclasses.field(default_factory=dict)
    # "standardize" (each dimension, of a grid over its tokens), "standardize_tokens"
    # (each dimension of each token), "raw", "unit_scaled" or "unit_17.2"
    embedding: str = "standardize"

    def __post_init__(self):
        rates = {"drop": self.drop}
        rates |= {f"drop_each.{name}": p for name, p in self.drop_each.items()}
        for name, p in rates.items():
            if not 0 <= p <= 1:
                raise UsageError(
                    f"config.stage_options.{name} is {p}: expected 0 to 1, a fraction "
                    "of rows"
                )


@dataclasses.dataclass(frozen=True)
class EmbeddingTask:
    """The model, the data it sees, and how rows lose conditions."""

    model: EmbeddingPrior
    fields: dict[str, Any]
    options: ConditionOptions
    spec: DataSpec
    target: str  # name of the target's array
    target_spec: tuple[tuple[int, ...], str]  # its (shape, dtype)
    conditions: dict[str, Condition]

    @classmethod
    def from_config(cls, config, spec: DataSpec, options, single_pass: bool):
        """Fits the model to the data.

        Raises:
          UsageError: data without a target or conditions, a condition that they do not
            have or no example has, a field of the model that the data decides.
        """
        spec = _described(spec, config)
        assert spec.conditions and spec.target_shape and spec.target
        assert spec.target_dtype
        shape = tuple(spec.target_shape)
        names = options.conditions or tuple(spec.conditions)
        where = "config.stage_options.conditions"
        config_lib.check_keys(dict.fromkeys(names), spec.conditions, where)
        for name in names:
            if name in (spec.absent_conditions or ()):
                raise UsageError(
                    f"no example of config.data.path has the condition {name!r}, so "
                    f"that nothing can be learned of it: leave it out with {where}, or "
                    "divide the examples otherwise (config.splits of unclip_jax.align)"
                )
        config_lib.check_keys(
            options.drop_each, names, "config.stage_options.drop_each"
        )
        for name in FROM_DATA:
            if name in config.model:
                raise UsageError(
                    f"config.model.{name} follows from the data and the stage: leave "
                    "it out"
                )
        described = {
            name: {**spec.conditions[name], "position": i}
            for i, name in enumerate(names)
        }
        fields = {
            **config.model,
            "target_shape": shape,
            "conditions": described,
            "unit_norm": options.embedding in stages.UNIT_SCALES,
            "single_pass": single_pass,
        }
        model = models.build("embedding_prior", fields, stages.compute_dtype(config))
        target = shape, spec.target_dtype
        task = cls(model, fields, options, spec, spec.target, target, model.described)
        task._convention()
        return task

    @property
    def batch_spec(self) -> dict[str, Any]:
        """{name: (shape, dtype)} of one example."""
        return {self.target: self.target_spec, **batch_spec(self.conditions)}

    def init(self, rng):
        """Fresh parameters, float32, with what the data decides."""
        x = jnp.zeros((1, *self.target_spec[0]))
        noised = (None, None) if self.model.single_pass else (x, jnp.zeros(1, int))
        inputs = *noised, example_conditions(self.model), jnp.zeros(1, bool)
        params = dict(self.model.init(rng, *inputs)["params"])
        params = stages.with_embedding_space(params, *self._convention())
        statistics = self.spec.condition_statistics
        known = statistics() if statistics else {}
        for name, condition in self.conditions.items():
            if condition.kind in FLOATS and name in known:
                space = {
                    "mean": jnp.asarray(known[name]["mean"], jnp.float32),
                    "std": jnp.asarray(_nonzero(known[name]["std"])),
                }
                own = params[f"condition_{name}"]
                params[f"condition_{name}"] = {**own, "space": space}
        return params

    def x_0(self, params, batch) -> Any:
        """The target in the prior's space, float32."""
        variables, raw = {"params": params}, batch[self.target]
        return self.model.apply(variables, raw, method="normalize")

    def denormalize(self, params, z):
        """What `x_0` made of raw embeddings, back."""
        return self.model.apply({"params": params}, z, method="denormalize")

    def inputs(self, batch, rng=None):
        """(conditions, drop), the model's last two: some dropped if there is a key."""
        arrays = {n: batch[n] for n in batch_spec(self.conditions)}
        rows = len(batch[self.target])
        if rng is None:
            return merge_repeats(self.conditions, arrays), jnp.zeros(rows, bool)
        rng_all, rng_repeats, *keys = jax.random.split(rng, 2 + len(self.conditions))
        every = stages.bernoulli(rng_all, self.options.drop, rows)
        drop = {}
        for name, key in zip(self.conditions, keys, strict=True):
            rate = self.options.drop_each.get(name, 0.0)
            drop[name] = every | stages.bernoulli(key, rate, rows)
        return merge_repeats(self.conditions, arrays, rng_repeats), drop

    def cosines(self, params, batch, z):
        """How near predictions z, in the prior's space, come to the true targets."""
        true = flat(batch[self.target])
        predicted = flat(self.denormalize(params, z))
        other = jnp.roll(true, 1, 0)
        return {
            "cosine": stages.cosine(predicted, true).mean(),
            "cosine_to_a_random_one": stages.cosine(predicted, other).mean(),
        }

    def export(self, part: str, **config):
        """{"part", "config"}: what rebuilds the model for sampling."""
        embedding = self.options.embedding
        config = {"model": self.fields, "embedding": embedding, **config}
        return {"part": part, "config": config}

    def _convention(self) -> tuple[str, DataSpec]:
        """Of stages.with_embedding_space, which knows nothing of tokens."""
        name, spec = self.options.embedding, self.spec
        if name not in ("standardize", PER_TOKEN):
            return name, spec
        if spec.embedding_mean is None or spec.embedding_std is None:
            raise UsageError(f"stage_options.embedding {name!r}: no statistics known")
        mean, std = np.asarray(spec.embedding_mean), np.asarray(spec.embedding_std)
        if name == "standardize" and mean.ndim == 2:
            pooled = np.sqrt((std**2 + mean**2).mean(0) - mean.mean(0) ** 2)
            mean = np.broadcast_to(mean.mean(0), mean.shape)
            std = np.broadcast_to(pooled, std.shape)
        statistics = {
            "embedding_mean": mean,
            "embedding_std": _nonzero(std),
        }
        return "standardize", dataclasses.replace(spec, **statistics)


def flat(x):
    """(B, ...) -> (B, numbers of one example) float32."""
    return jnp.asarray(x, jnp.float32).reshape(len(x), -1)


def _nonzero(std) -> np.ndarray:
    """std float32, 1 where a dimension hardly varies: noise would be blown up."""
    std = np.asarray(std, np.float64)
    varies = std > 1e-6 * max(float(std.max()), 1e-30)
    return np.where(varies, std, 1.0).astype(np.float32)


def _described(spec: DataSpec, config) -> DataSpec:
    """The spec with a target and conditions, those of CLIP records if they are."""
    if spec.conditions is not None:
        return spec
    if spec.embed_dim is None or spec.context_length is None:
        raise UsageError(
            f"stage {config.stage!r} needs aligned arrays or records of embeddings: "
            "make them with `python -m unclip_jax.align` or `python -m "
            "unclip_jax.embed`"
        )
    length = spec.context_length
    conditions: dict[str, dict[str, Any]] = {
        "tokens": {
            "kind": "tokens",
            "shape": (length,),
            "dtype": "int32",
            "size": spec.vocab_size,
            "eot_id": spec.eot_id,
        },
        "clip_text": {"kind": "vector", "shape": (spec.embed_dim,)},
    }
    if spec.text_width is not None:
        conditions["text_states"] = {
            "kind": "sequence",
            "shape": (length, spec.text_width),
            "dtype": "float16",
        }
    return dataclasses.replace(
        spec,
        target="clip_image",
        target_shape=(spec.embed_dim,),
        target_dtype="float32",
        conditions=conditions,
    )
