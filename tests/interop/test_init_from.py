"""What a run may start from: whose parameters, and which are refused."""

import jax
import numpy as np
import pytest

from unclip_jax import models
from unclip_jax.interop import components, diffusers_prior, mapping, native
from unclip_jax.interop.init_from import load_initial
from unclip_jax.models.clip_caption import EMPTY_CAPTION

FIELDS = {
    "embed_dim": 8,
    "vocab_size": 30,
    "context_length": 6,
    "eot_id": 29,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "caption": "clip_states",
    "text_width": 8,
}
CONFIG = {
    "model": FIELDS,
    "diffusion": {"schedule": "cosine", "num_steps": 1000, "prediction": "x0"},
    "embedding": "standardize",
}


def run_with(clip="a-clip", **changes):
    """What a run says of itself; `changes` are of the model's fields or the config."""
    config = {**CONFIG, **{k: v for k, v in changes.items() if k in CONFIG}}
    fields = {k: v for k, v in changes.items() if k not in CONFIG}
    config["model"] = {**FIELDS, **fields}
    export = {"part": "prior", "config": config}
    return {"export": export, "data_info": {"clip_fingerprint": clip}}


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = components.param_shapes("prior", models.build("prior", FIELDS))
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def export(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    native.write_part(folder, "prior", CONFIG, params, {"clip_fingerprint": "a-clip"})
    return folder


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_native_export(export, params):
    assert_same(load_initial(export, run_with()), params)
    stacked = load_initial(export, run_with(scan_layers=True))
    assert_same(stacked, mapping.stack_blocks(params))


def test_a_folder_of_diffusers(params, tmp_path):
    """The pipeline's or the module's; the empty caption stays the stage's own."""
    diffusers_prior.save_prior(CONFIG, params, tmp_path / "prior")
    expected = {k: v for k, v in params.items() if k not in EMPTY_CAPTION}
    for folder in (tmp_path, tmp_path / "prior"):
        assert_same(load_initial(folder, run_with()), expected)


def test_one_scale_under_two_names_is_the_same(params, tmp_path):
    """17.2 is what "unit_scaled" gives at 1024 dimensions, and at no other."""
    config = {**CONFIG, "embedding": "unit_17.2"}
    native.write_part(tmp_path, "prior", config, params, {"clip_fingerprint": "a-clip"})
    dim = FIELDS["embed_dim"]
    message = f"times 17.2', the config 'unit norm times {0.5375 * dim**0.5:.6g}'"
    with pytest.raises(ValueError, match=message):
        load_initial(tmp_path, run_with(embedding="unit_scaled"))
    assert_same(load_initial(tmp_path, run_with(embedding="unit_17.2")), params)
    # the larger model does not fit either, but only by its shapes
    with pytest.raises(ValueError, match=r"instead of \(1024,\)"):
        load_initial(tmp_path, run_with(embedding="unit_scaled", embed_dim=1024))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, r"query \(16,\) instead of \(32,\)"),
        ({"depth": 1}, "unexpected: transformer/block_1/attn/k/bias"),
        ({"caption": "tokens"}, "missing: null_clip_text, token_embedding"),
        ({"clip": "other"}, "of the CLIP a-clip..., the data are of other"),
        ({"embedding": "unit_17.2"}, "has embedding 'standardize', the config 'unit"),
        ({"diffusion": {"prediction": "v"}}, "has prediction 'x0', the config 'v'"),
    ],
)
def test_another_model_is_refused(export, changes, message):
    with pytest.raises(ValueError, match=message):
        load_initial(export, run_with(**changes))


def test_a_folder_without_the_part_is_named(export, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no prior: expected a native"):
        load_initial(tmp_path / "nothing", run_with())
    decoder = {"part": "decoder", "config": CONFIG}
    with pytest.raises(FileNotFoundError, match="has no decoder"):
        load_initial(export, {"export": decoder, "data_info": {}})
