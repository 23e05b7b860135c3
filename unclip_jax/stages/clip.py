"""Stage clip: symmetric InfoNCE over the global batch (Radford et al. 2021).

Embeddings of the whole batch meet in one matrix of logits, whatever the number of
devices; the towers may see only a `group` of a device's examples at a time, so that
the batch is bounded by the logits and not by activations (GradCache, Gao et al. 2021).
With `sam_rho` the towers are trained by sharpness-aware minimisation (Foret et al.
2021), each group perturbing the weights for itself (unCLIP, appendix C: rho 0.1, 64
examples per replica).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from unclip_jax import config as config_lib
from unclip_jax import models, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.errors import UsageError

BATCH_AXES = ("data", "fsdp")  # of the mesh: what a batch is divided over


@dataclasses.dataclass(frozen=True)
class Options:
    """config.stage_options of this stage."""

    max_logit_scale: float = 100.0
    group: int = 0  # examples embedded at a time on each device; 0: all of them
    sam_rho: float = 0.0  # length of a group's perturbation; 0: plain gradients


@dataclasses.dataclass(frozen=True)
class Stage:
    """Trains the image and text towers of CLIP."""

    model: models.CLIP
    fields: dict[str, Any]
    options: Options
    batch_spec: dict[str, Any]

    @classmethod
    def from_config(cls, config: stages.StageConfig, spec: DataSpec):
        """Fits the stage to the data; UsageError where it does not."""
        wanted = ("image_size", "vocab_size", "context_length", "eot_id")
        fields = stages.model_fields(config, spec, wanted)
        model = models.build("clip", fields, stages.compute_dtype(config))
        side, length = fields["image_size"], fields["context_length"]
        options = config_lib.build(
            Options, config.stage_options, "config.stage_options"
        )
        for name in ("group", "sam_rho"):
            if getattr(options, name) < 0:
                raise UsageError(
                    f"config.stage_options.{name} must be at least 0, got "
                    f"{getattr(options, name)}"
                )
        return cls(
            model=model,
            fields=fields,
            options=options,
            batch_spec={
                "image": ((side, side, 3), "uint8"),
                "tokens": ((length,), "int32"),
            },
        )

    def init(self, rng):
        """Fresh parameters, float32, with what the data decides."""
        batch = stages.example_batch(self.batch_spec)
        return self.model.init(rng, batch["image"], batch["tokens"])["params"]

    def loss(self, params, rng, batch):
        """Mean of the image-to-text and text-to-image cross entropies.

        With SAM it is the loss of the perturbed towers, whose gradient is the one to
        follow; the metrics are of the towers as they are, and `sharpness` is how much
        the perturbations raised the loss.
        """
        del rng
        bound = math.log(self.options.max_logit_scale)
        scale = jnp.exp(at_most(params["logit_scale"], bound))
        if not self.options.sam_rho:
            embed = self._towers
            if self.options.group:
                embed = functools.partial(self._by_groups, self._towers)
            return contrastive(embed(params, batch), scale)
        clean = self._by_groups(self._towers, jax.lax.stop_gradient(params), batch)
        gradient = jax.value_and_grad(contrastive, has_aux=True)
        (before, metrics), cotangents = gradient(clean, jax.lax.stop_gradient(scale))
        embeddings = self._by_groups(self._perturbed, params, (batch, cotangents))
        loss, _ = contrastive(embeddings, scale)
        return loss, {**metrics, "sharpness": loss - before}

    def _towers(self, params, batch):
        """Unit embeddings (images (B, D), texts (B, D))."""
        embeddings = self.model.apply(
            {"params": params}, batch["image"], batch["tokens"]
        )
        return jax.tree.map(
            lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), embeddings
        )

    def _perturbed(self, params, group):
        """`_towers` of one group where the weights have moved to raise the loss.

        SAM's step: w + rho g / |g|, g being what this group's embeddings contribute
        to the gradient of the batch's loss; no gradient flows through g. The logit
        scale, which belongs to no group, stays where it is.
        """
        batch, cotangents = group
        fixed = jax.lax.stop_gradient(params)
        _, pull_back = jax.vjp(lambda p: self._towers(p, batch), fixed)
        (grads,) = pull_back(cotangents)  # zero for the logit scale
        square = sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))
        step = self.options.sam_rho / jnp.sqrt(square).clip(1e-12)
        moved = jax.tree.map(lambda p, g: p + step * g, params, grads)
        return self._towers(moved, batch)

    def _by_groups(self, function, params, rows):
        """function(params, rows) group after group, on all devices at once.

        A group is consecutive rows of one device, all of them if they are fewer than
        a group. Where there are several, activations of one are forgotten and computed
        again for the gradient. Under a mesh, each device gathers the parameters once
        and gradients are summed over the devices once, after the last group.

        Args:
          function: (params, rows) -> arrays with one row per row, of one group.
          params: the parameters.
          rows: pytree of arrays (B, ...).
        """

        def on_device(params, rows):
            count = len(jax.tree.leaves(rows)[0])
            group = min(self.options.group or count, count)
            if count % group:
                raise UsageError(
                    f"config.stage_options.group is {group}, but a device has {count} "
                    "examples of a batch: choose a divisor of that"
                )
            if count == group:
                return function(params, rows)
            groups = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), rows)
            one = jax.checkpoint(functools.partial(function, params), prevent_cse=False)
            results = jax.lax.map(one, groups)  # (count / group, group, ...)
            return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), results)

        def on_each_device(params, rows):
            # a copy of its own, so that gradients stay on the device till the end
            params = jax.lax.pcast(params, BATCH_AXES, to="varying")
            return on_device(params, rows)

        if jax.sharding.get_abstract_mesh().empty:
            return on_device(params, rows)
        by_rows = P(BATCH_AXES)
        return jax.shard_map(
            on_each_device,
            in_specs=(P(), by_rows),
            out_specs=by_rows,
            axis_names=set(BATCH_AXES),
        )(params, rows)

    def embed(self, params, rng, batch):
        """Raw embeddings {"image", "text"}, (B, D) each."""
        del rng
        image, text = self.model.apply(
            {"params": params}, batch["image"], batch["tokens"]
        )
        return {"image": image, "text": text}

    def export(self):
        """{"part", "config"}: what rebuilds the model for sampling."""
        return {"part": "clip", "config": {"model": self.fields}}


def contrastive(embeddings, scale):
    """Symmetric InfoNCE (Radford et al. 2021, figure 3).

    Args:
      embeddings: (images, texts), unit (B, D) float32; row i belongs to row i.
      scale: () float32, the inverse temperature.

    Returns:
      (loss, metrics).
    """
    image, text = embeddings
    # the accelerators' fast product would round a logit of 100 by up to 0.4
    cosine = jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)  # (B, B)
    logits = scale * cosine
    matching = jnp.diagonal(logits)
    over_texts, over_images = (jax.nn.logsumexp(logits, axis=a) for a in (1, 0))
    loss = (0.5 * (over_texts + over_images) - matching).mean()
    labels = jnp.arange(len(logits))
    return loss, {
        "image_to_text_top1": (logits.argmax(1) == labels).mean(),
        "text_to_image_top1": (logits.argmax(0) == labels).mean(),
        "logit_scale": scale,
        "cosine": matching.mean() / scale,
    }


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def at_most(x, bound: float):
    """min(x, bound); its gradient vanishes only where descent would raise x further.

    The gradient of min itself would keep x for ever where it first passed the bound.
    """
    return jnp.minimum(x, bound)


def _at_most_forward(x, bound):
    return at_most(x, bound), x


def _at_most_backward(bound, x, g):
    return (jnp.where((x > bound) & (g < 0), 0.0, g),)


at_most.defvjp(_at_most_forward, _at_most_backward)
