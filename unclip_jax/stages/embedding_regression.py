"""Stage embedding_regression: the deterministic prior, one pass and no diffusion.

The mean squared error of the embedding plus a contrastive loss, as ECLIPSE (Patel et
al. 2023, arXiv 2312.04655, equation 4): there the negatives are text embeddings, here
they are the true embeddings of the batch's other examples, since conditions need not
lie in one space with their target.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from unclip_jax import config as config_lib
from unclip_jax.errors import UsageError
from unclip_jax.stages import embedding
from unclip_jax.stages.embedding import flat


@dataclasses.dataclass(frozen=True)
class Options(embedding.ConditionOptions):
    """config.stage_options of this stage."""

    drop: float = 0.0  # rows trained without any condition
    contrastive: float = 0.2  # weight of the contrastive loss; ECLIPSE's lambda
    temperature: float = 0.05  # that cosines are divided by

    def __post_init__(self):
        super().__post_init__()
        if self.contrastive < 0 or not self.temperature > 0:
            raise UsageError(
                "config.stage_options: expected contrastive at least 0 and temperature "
                f"above 0, got {self.contrastive} and {self.temperature}"
            )


@dataclasses.dataclass(frozen=True)
class Stage:
    """Trains the prior on aligned arrays."""

    task: embedding.EmbeddingTask
    options: Options

    @classmethod
    def from_config(cls, config, spec):
        """Fits the stage to the data; UsageError where it does not."""
        options = config_lib.build(
            Options, config.stage_options, "config.stage_options"
        )
        config_lib.check_keys(config.diffusion, (), "config.diffusion")
        task = embedding.EmbeddingTask.from_config(config, spec, options, True)
        return cls(task, options)

    @property
    def batch_spec(self) -> dict[str, Any]:
        """{name: (shape, dtype)} of one example."""
        return self.task.batch_spec

    def init(self, rng):
        """Fresh parameters, float32, with what the data decides."""
        return self.task.init(rng)

    def loss(self, params, rng, batch):
        """The squared error in the prior's space, and the contrastive loss."""
        rng, rng_dropout = jax.random.split(rng)
        z: Any = self.task.model.apply(
            {"params": params},
            None,
            None,
            *self.task.inputs(batch, rng),
            deterministic=False,
            rngs={"dropout": rng_dropout},
        )
        true = self.task.x_0(params, batch)
        mse = jnp.square(z - true).mean()
        info_nce = contrastive_loss(flat(z), flat(true), self.options.temperature)
        metrics = {"mse": mse, "contrastive": info_nce}
        metrics |= self.task.cosines(params, batch, z)
        return mse + self.options.contrastive * info_nce, metrics

    def embed(self, params, rng, batch):
        """{"predicted", "true"}, (B, D) each; tokens one after the other."""
        del rng
        inputs = self.task.inputs(batch)
        z = self.task.model.apply({"params": params}, None, None, *inputs)
        predicted = flat(self.task.denormalize(params, z))
        return {"predicted": predicted, "true": flat(batch[self.task.target])}

    def export(self):
        """{"part", "config"}: what rebuilds the model for sampling."""
        return self.task.export("embedding_regression")


def contrastive_loss(predicted, true, temperature: float):
    """The symmetric InfoNCE of (B, D) predictions and their targets, in nats.

    Cosines over `temperature` are the logits, in float32; both directions are averaged.
    """
    # not the norm: its gradient at 0 is NaN
    squares = (jnp.square(x).sum(-1, keepdims=True) for x in (predicted, true))
    unit = [
        x * jax.lax.rsqrt(square + 1e-12)
        for x, square in zip((predicted, true), squares, strict=True)
    ]
    logits = unit[0] @ unit[1].T / temperature  # (B, B)
    labels = jnp.arange(len(logits))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    both = cross_entropy(logits, labels), cross_entropy(logits.T, labels)
    return (both[0].mean() + both[1].mean()) / 2
