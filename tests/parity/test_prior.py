"""The prior against diffusers' PriorTransformer, with random weights."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.torch_shapes import torch_shapes
from unclip_jax import models
from unclip_jax.interop import components, diffusers_prior, mapping, weights
from unclip_jax.models.clip_caption import EMPTY_CAPTION, with_empty_caption
from unclip_jax.parallel.sharding import path_name

SHAPES = pathlib.Path(__file__).parent / "shapes"
DIM, LENGTH, EOT = 24, 10, 99
RNG = np.random.default_rng(0)
# the empty caption, and captions of 3 and 8 tokens; padded with 0, as Karlo's
TOKENS = np.array(
    [[98, EOT, *[0] * 8], [98, 5, 6, 7, EOT, *[0] * 5], [98, *[3] * 8, EOT]]
)
STEPS = np.array([999, 500, 0])


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


X_T, TEXT, STATES = normal(3, DIM), normal(3, DIM), normal(3, LENGTH, DIM)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, randomised):
    """A tiny PriorTransformer and the folder it saved itself in."""
    import diffusers

    model = diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        embedding_dim=DIM,
        num_embeddings=LENGTH,
    )
    randomised(model, 0)
    folder = tmp_path_factory.mktemp("their") / "prior"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def loaded(theirs):
    """The same as (part config, parameters) of ours."""
    config, params = diffusers_prior.load_prior(theirs[1], eot_id=EOT, vocab_size=100)
    return config, with_empty_caption(params, STATES[0], TEXT[0])


def run_theirs(model):
    """Their prediction of x0, padding masked."""
    import torch

    mask = np.arange(LENGTH) <= (TOKENS == EOT).argmax(1)[:, None]
    with torch.no_grad():
        return model(
            torch.tensor(X_T),
            torch.tensor(STEPS),
            torch.tensor(TEXT),
            torch.tensor(STATES),
            torch.tensor(mask),
        ).predicted_image_embedding.numpy()


def run_ours(config, params, drop=(False, False, False), **changed):
    """Ours, compiled once per form."""
    module = models.build("prior", {**config["model"], **changed})
    inputs = map(jnp.asarray, (X_T, STEPS, TOKENS, TEXT, np.array(drop), STATES))
    return np.asarray(_apply(module, params, *inputs))


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, *inputs):
    return module.apply({"params": params}, *inputs)


def test_it_predicts_what_theirs_does(theirs, loaded):
    """Measured: 1.1e-6 on outputs up to 2.6."""
    ours = run_ours(*loaded)
    np.testing.assert_allclose(ours, run_theirs(theirs[0]), atol=1e-5)
    assert np.abs(ours - ours[0]).max() > 0.1


def test_stacked_layers_do_the_same(theirs, loaded):
    config, params = loaded
    ours = run_ours(config, mapping.stack_blocks(params), scan_layers=True)
    np.testing.assert_allclose(ours, run_theirs(theirs[0]), atol=1e-5)


def test_dropped_rows_are_those_of_the_empty_caption(theirs, loaded):
    """The unconditional half of their pipelines is what CLIP makes of ""."""
    import torch

    ours = run_ours(*loaded, drop=(True, True, True))
    empty = np.tile(STATES[:1], (3, 1, 1)), np.tile(TEXT[:1], (3, 1))
    with torch.no_grad():
        expected = theirs[0](
            torch.tensor(X_T),
            torch.tensor(STEPS),
            torch.tensor(empty[1]),
            torch.tensor(empty[0]),
            torch.arange(LENGTH)[None].repeat(3, 1) < 2,
        ).predicted_image_embedding
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
def test_their_class_reads_what_we_write(theirs, loaded, tmp_path, stacked):
    import diffusers

    config, params = loaded
    if stacked:
        params = mapping.stack_blocks(params)
    diffusers_prior.save_prior(config, params, tmp_path / "prior")
    model, said = diffusers.PriorTransformer.from_pretrained(
        tmp_path / "prior", output_loading_info=True
    )
    assert not any(said.values())
    np.testing.assert_array_equal(run_theirs(model.eval()), run_theirs(theirs[0]))
    written = json.loads((tmp_path / "prior" / "config.json").read_text())
    given = json.loads((theirs[1] / "config.json").read_text())
    assert {k: given[k] for k in written} == written


def test_the_embedding_space_is_theirs(theirs, loaded):
    import torch

    module = models.build("prior", loaded[0]["model"])
    raw = module.apply({"params": loaded[1]}, X_T, method="denormalize")
    expected = theirs[0].post_process_latents(torch.tensor(X_T)).detach().numpy()
    np.testing.assert_allclose(raw, expected, atol=1e-6)
    back = module.apply({"params": loaded[1]}, raw, method="normalize")
    np.testing.assert_allclose(back, X_T, atol=1e-5)


def test_shards_and_half_precision(theirs, loaded, tmp_path):
    """Weights in float16 move outputs up to 2.6 by 2.4e-3, measured."""
    theirs[0].save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    _, params = diffusers_prior.load_prior(tmp_path / "sharded")
    jax.tree.map(
        np.testing.assert_array_equal,
        params,
        {k: v for k, v in loaded[1].items() if k not in EMPTY_CAPTION},
    )
    config, params = loaded
    diffusers_prior.save_prior(config, params, tmp_path / "half", "float16")
    _, half = diffusers_prior.load_prior(tmp_path / "half", eot_id=EOT)
    half = with_empty_caption(half, STATES[0], TEXT[0])
    difference = np.abs(run_ours(config, half) - run_ours(config, params)).max()
    assert 0 < difference < 1e-2


def test_missing_and_unknown_tensors_are_named(theirs, tmp_path):
    tensors = weights.read_weights(theirs[1])
    tensors["norm_in.weight"] = tensors.pop("norm_out.weight")
    config = (theirs[1] / "config.json").read_text()
    weights.write_weights(tmp_path, tensors, "diffusion_pytorch_model")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="missing: norm_out.*unexpected: norm_in"):
        diffusers_prior.load_prior(tmp_path)


def test_a_prior_without_the_empty_caption_is_refused(theirs):
    config, params = diffusers_prior.load_prior(theirs[1], eot_id=EOT, vocab_size=100)
    with pytest.raises(ValueError, match="2 missing: empty_clip_text, empty_text_st"):
        components.build_component(
            "prior", config, params, {"clip_fingerprint": ""}, where="tiny"
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm_in_type": "layer"}, "norm_in_type is 'layer'; only None"),
        ({"additional_embeddings": 2}, "additional_embeddings is 2; only 4"),
        ({"clip_embed_dim": 7}, "clip_embed_dim is 7; only 768"),
        ({"time_embed_dim": 64}, "time_embed_dim is 64; only 2048"),
        ({"num_layer": 2}, "did you mean 'num_layers'"),
        ({"_class_name": "UNet2DModel"}, "expected a PriorTransformer, found a UNet"),
    ],
)
def test_settings_without_a_counterpart_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        diffusers_prior.model_fields(changed, "config.json")


def test_priors_that_their_class_cannot_hold_are_refused(loaded, tmp_path):
    config, params = loaded
    own = {**config, "model": {**config["model"], "caption": "tokens"}}
    with pytest.raises(ValueError, match="caption 'clip_states'; this one has 'tok"):
        diffusers_prior.save_prior(own, params, tmp_path)
    with pytest.raises(ValueError, match="this one has 'unit_17.2'"):
        other = {**config, "embedding": "unit_17.2"}
        diffusers_prior.save_prior(other, params, tmp_path)


def test_the_scheduler_says_how_far_x0_is_bounded(theirs, loaded, tmp_path):
    import diffusers

    diffusers.UnCLIPScheduler(
        clip_sample_range=10.0, prediction_type="sample"
    ).save_pretrained(tmp_path)
    found, _ = diffusers_prior.load_prior(theirs[1], tmp_path)
    assert found["diffusion"] == {**loaded[0]["diffusion"], "clip": 10.0}
    assert loaded[0]["diffusion"]["clip"] == 5.0  # Karlo's, without a scheduler


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dim", "count"),
    [
        ("karlo_prior", 768, 1_022_030_080),
        ("kandinsky22_prior", 1280, 1_026_225_920),
    ],
)
def test_at_full_size_names_and_shapes_are_the_public_ones(name, dim, count):
    """Of shapes alone: no memory."""
    expected = json.loads((SHAPES / f"{name}.json").read_text())
    fields = diffusers_prior.model_fields({"embedding_dim": dim}, name)
    fields |= {"eot_id": 49407, "vocab_size": 49408}
    shapes = components.param_shapes("prior", models.build("prior", fields))
    table = diffusers_prior.table(fields["depth"])
    found = torch_shapes(table, shapes)
    assert found == {k: tuple(v) for k, v in expected.items()}
    assert sum(int(np.prod(s)) for s in found.values()) == count
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    ours = {path_name(path) for path, _ in leaves}
    assert ours == {e.ours for e in table} | set(EMPTY_CAPTION)


def test_the_config_is_karlos():
    from unclip_jax import config as config_lib
    from unclip_jax import stages
    from unclip_jax.planning import plan
    from unclip_jax.training import run_config

    file = pathlib.Path(__file__).parents[2] / "configs" / "karlo" / "prior.py"
    config = run_config.read_config(config_lib.load(file))
    spec = plan.assumed_spec(config, {"embed_dim": 768, "context_length": 77})
    stage = stages.make_stage(config, spec)
    for name, value in diffusers_prior.model_fields({}, "Karlo's").items():
        assert getattr(stage.model, name) == value, name
    found = stage.export()["config"]["diffusion"]
    # besides, the config says how Karlo is sampled: its guidance and its variance
    shared = {name: found[name] for name in diffusers_prior.KARLO if name in found}
    assert {"schedule", "num_steps", "prediction", "sampler"} <= shared.keys()
    assert shared.items() <= diffusers_prior.KARLO.items()
