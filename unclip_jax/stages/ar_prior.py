"""Stage ar_prior: the autoregressive prior, cross entropy of codes (section 2.2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.models import codebook, layers


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    drop_text: float = 0.1  # rows trained without caption and text embedding
    embedding: str = "standardize"  # see stages.with_embedding_space


@dataclasses.dataclass(frozen=True)
class Stage:
    """Trains the autoregressive prior on records of CLIP embeddings and captions."""

    model: models.AutoregressivePrior
    fields: dict[str, Any]
    options: Options
    constants: dict[str, Any]  # the parameters "space" and "codebook"
    batch_spec: dict[str, Any]

    @classmethod
    def from_config(cls, config: stages.StageConfig, spec: DataSpec):
        """Fits the stage to the data; UsageError where it does not."""
        options = config_lib.build(
            Options, config.stage_options, "config.stage_options"
        )
        config_lib.check_keys(config.diffusion, (), "config.diffusion")
        wanted = ("embed_dim", "vocab_size", "context_length", "eot_id")
        fields = stages.model_fields(config, spec, wanted)
        fields["unit_norm"] = options.embedding in stages.UNIT_SCALES
        width = fields["embed_dim"]
        model = models.build("ar_prior", fields, stages.compute_dtype(config))
        return cls(
            model=model,
            fields=fields,
            options=options,
            constants=_constants(model, options.embedding, spec),
            batch_spec={
                "tokens": ((fields["context_length"],), "int32"),
                "clip_image": ((width,), "float32"),
                "clip_text": ((width,), "float32"),
            },
        )

    def init(self, rng):
        """Fresh parameters, float32, with what the data decides."""
        batch = stages.example_batch(self.batch_spec)
        inputs = batch["clip_image"], batch["tokens"], batch["clip_text"]
        params = self.model.init(rng, *inputs, jnp.zeros(1, bool))["params"]
        return {**params, **jax.tree.map(jnp.asarray, self.constants)}

    def loss(self, params, rng, batch):
        """Cross entropy per component, in nats, the true ones before it given.

        Codes alone, each as likely as another, would score log(num_buckets).
        """
        variables = {"params": params}
        rng_drop, rng_dropout = jax.random.split(rng)
        raw = batch["clip_image"]
        outputs: Any = self.model.apply(
            variables,
            raw,
            batch["tokens"],
            batch["clip_text"],
            stages.bernoulli(rng_drop, self.options.drop_text, raw.shape[0]),
            deterministic=False,
            rngs={"dropout": rng_dropout},
        )
        logits, codes = outputs
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
        predicted = self.model.apply(variables, logits, method="expected")
        other = jnp.roll(raw, 1, 0)
        return losses.mean(), {
            "accuracy": (logits.argmax(-1) == codes).mean(),
            "first_component": losses[:, 0].mean(),
            # of the mean of each component given the true ones before it
            "cosine": stages.cosine(predicted, raw).mean(),
            "cosine_to_a_random_one": stages.cosine(predicted, other).mean(),
        }

    def export(self):
        """{"part", "config"}: what rebuilds the model for sampling."""
        config = {"model": self.fields, "embedding": self.options.embedding}
        return {"part": "ar_prior", "config": config}


def _constants(model, convention, spec):
    """{"space", "codebook"}: how the embeddings are seen, fitted to the data.

    The sample of embeddings is read, and the codebook fitted, each time a run starts.
    """
    width = model.embed_dim
    identity = {"space": {"mean": jnp.zeros(width), "std": jnp.ones(width)}}
    made = stages.with_embedding_space(identity, convention, spec)
    sample = spec.embedding_sample()
    image, text = sample["clip_image"], sample["clip_text"]
    space = layers.EmbeddingSpace(width, model.unit_norm)
    z = space.apply({"params": made["space"]}, image, method="normalize")
    dots = np.asarray(stages.cosine(image, text))
    sizes = model.num_components, model.num_buckets
    made["codebook"] = codebook.fit(z, dots, *sizes)
    # hosts may round differently, and must not disagree about a single code
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, made))
