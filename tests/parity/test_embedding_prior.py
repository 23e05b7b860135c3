"""Embedding priors as diffusers' PriorTransformer, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_params
from unclip_jax import models
from unclip_jax.errors import UsageError
from unclip_jax.interop import components, diffusers, diffusers_scheduler, verify
from unclip_jax.interop.diffusers_embedding_prior import their_config, their_tensors
from unclip_jax.interop.diffusers_prior import KARLO
from unclip_jax.models.embedding_prior import example_conditions

B, D = 3, 6
STEPS = np.array([999, 500, 0])
VECTOR = {"kind": "vector", "shape": (5,), "position": 1}
STATES = {"kind": "sequence", "shape": (4, D), "masked": True}
BOTH = {"words": STATES, "brain": VECTOR}
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def make_part(shape=(D,), conditions=BOTH, prediction="x0", **fields):
    """A prior whose spaces, too, are random; of a grid they are the same per token."""
    fields = {"width": 16, "depth": 2, "num_heads": 2, **fields}
    fields |= {"target_shape": shape, "conditions": conditions}
    model = models.build("embedding_prior", fields)
    noised = jnp.zeros((1, *shape)), jnp.zeros(1, int)
    noised = (None, None) if model.single_pass else noised
    given = *noised, example_conditions(model), jnp.zeros(1, bool)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *given)
    params = random_params(shapes["params"])
    params["space"] = {"mean": np.broadcast_to(normal(D), shape)}
    params["space"]["std"] = np.broadcast_to(1 + normal(D) ** 2, shape)
    diffusion = {**KARLO, "prediction": prediction, "clip": None}
    config = {"model": fields, "diffusion": diffusion, "embedding": "standardize"}
    return components.build_component("embedding_prior", config, params, {}, where="it")


@pytest.mark.parametrize(
    "shape, conditions, fields",
    [
        ((D,), {"brain": VECTOR}, {}),
        ((D,), BOTH, {}),
        ((D,), {"brain": VECTOR}, {"causal": False, "scan_layers": True}),
        ((7, D), {"brain": VECTOR}, {"causal": False, "queries": False}),
        ((7, D), BOTH, {"queries": False}),
    ],
    ids=["vector", "sequence", "bidirectional", "grid", "causal grid"],
)
def test_their_class_predicts_what_ours_does(shape, conditions, fields, tmp_path):
    """Of raw conditions, padding masked: 1e-5, on outputs up to 4."""
    import torch
    from diffusers import PriorTransformer

    part = make_part(shape, conditions, **fields)
    diffusers.write_part(tmp_path, part)
    verify.write_sums(tmp_path)
    assert verify.verify(tmp_path, part, "diffusers", "float32") > 20
    theirs = PriorTransformer.from_pretrained(tmp_path / "prior").eval()
    x_t, brain, words = normal(B, *shape), normal(B, 5), normal(B, 4, D)
    mask = np.arange(4) < np.array([[4], [2], [3]])
    batch = {"brain": brain, "words": words, "words_mask": mask}
    ours = part.module.apply(
        {"params": part.params}, x_t, STEPS, batch, np.zeros(B, bool)
    )
    mask = mask if "words" in conditions else np.ones((B, 0), bool)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(x_t),
            torch.tensor(STEPS),
            torch.tensor(brain),
            torch.tensor(words) if "words" in conditions else None,
            torch.tensor(mask) if fields.get("causal", True) else None,
        ).predicted_image_embedding
        raw = theirs.post_process_latents(expected).numpy()
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)
    own = part.module.apply({"params": part.params}, ours, method="denormalize")
    np.testing.assert_allclose(own, raw, atol=3e-5)
    assert np.abs(ours - ours[:1]).max() > 0.1
    scheduler = diffusers_scheduler.read_scheduler(
        tmp_path / "prior_scheduler", KARLO, False
    )
    assert scheduler["prediction"] == "x0" and scheduler["clip"] is None


@pytest.mark.parametrize(
    "part, message",
    [
        ({"conditions": {"a": VECTOR, "b": VECTOR}}, "this one has 'vector', 'vector'"),
        ({"conditions": {"a": {**STATES, "position": 2}, "b": VECTOR}}, "one sequence"),
        ({"conditions": {"a": {"kind": "class", "shape": (), "size": 3}}}, "'class'"),
        ({"shape": (7, D)}, "learned queries 1; this one has 7"),
        ({"vector_tokens": 2}, "vector_tokens 1; this one has 2"),
        ({"causal": False}, "causal True; this one has False"),
        ({"single_pass": True}, "single_pass False"),
        (
            {"conditions": {"a": {**STATES, "shape": (4, 8)}, "b": VECTOR}},
            "width 6; this one has 8",
        ),
    ],
)
def test_what_their_class_cannot_hold_is_named(part, message):
    fields = dict(width=16, depth=1, num_heads=2, target_shape=part.pop("shape", (D,)))
    fields |= {"conditions": part.pop("conditions", BOTH), **part}
    with pytest.raises(UsageError, match=f"PriorTransformer.*{message}.*native format"):
        their_config({"model": fields})


def test_what_is_their_schedulers_or_space_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no prediction 'flow', only epsilon, x0"):
        diffusers.write_part(tmp_path, make_part(prediction="flow"))
    part = make_part((7, D), {"brain": VECTOR}, queries=False)
    params = {**part.params, "space": {"mean": normal(7, D), "std": normal(7, D)}}
    with pytest.raises(UsageError, match="one for each .standardize_tokens.: keep it"):
        their_tensors(part.config, params)
