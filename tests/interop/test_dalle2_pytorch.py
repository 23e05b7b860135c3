"""Priors of DALLE2-pytorch: what that package computed, 1e-4, and what is refused.

Files and outputs are those of tests/data/make_dalle2_pytorch.py.
"""

import json
import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest

from tests.random_params import random_params
from unclip_jax import Prior, export, stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.diffusion import guidance, process, samplers
from unclip_jax.errors import UsageError
from unclip_jax.interop import dalle2_pytorch
from unclip_jax.interop.init_from import load_initial
from unclip_jax.models.dalle2_prior import relative_buckets, rotate

torch = pytest.importorskip("torch")
FILES = pathlib.Path("tests/data/dalle2_pytorch")
GRIDS = ("pos_emb", "token", "all_pos_emb")
SETTINGS = {
    "options": {
        "prior": {
            "net": {"dim": 16, "num_time_embeds": 2, "rotary_emb": False},
            "predict_v": True,
            "image_embed_scale": 3.0,
            "beta_schedule": "quadratic",
        }
    },
    "token": {"net": {"causal": False, "learned_query_mode": "token"}},
}


def read(name, folder, settings=None):
    """(Component, arrays) of a file and its settings, in a folder of its own."""
    shutil.copy(FILES / f"{name}.pth", folder)
    settings = SETTINGS.get(name) if settings is None else settings
    if settings:
        (folder / f"{name}.json").write_text(json.dumps(settings))
    with np.load(FILES / f"{name}.npz") as arrays:
        return dalle2_pytorch.read_prior(folder / f"{name}.pth"), dict(arrays)


def conditions(arrays):
    if "text_encodings" not in arrays:
        return {"brain": arrays["text_embed"]}
    states = arrays["text_encodings"]
    mask = np.ones(states.shape[:2], bool)  # zeros are padding, mask or no mask
    return {
        "clip_text": arrays["text_embed"],
        "text_states": states,
        "text_states_mask": mask,
    }


@pytest.mark.parametrize("name", ["trainer", "options", *GRIDS])
def test_it_computes_what_the_package_does(name, tmp_path):
    """The network, guidance, and all DDPM steps with guidance: 1e-4."""
    part, arrays = read(name, tmp_path)
    given = conditions(arrays)
    apply = jax.jit(part.module.apply)

    def model(x, t, given, drop):
        return apply({"params": part.params}, x, t, given, drop)

    for scale in (1, 3):
        guided = guidance.classifier_free(model, given, scale)
        found = guided(arrays["x"], arrays["t"])
        np.testing.assert_allclose(found, arrays[f"output_{scale}"], atol=1e-4)
    config, schedule = part.config["diffusion"], part.noise_schedule
    predict = process.make_denoiser(
        guidance.classifier_free(model, given, 2),
        schedule,
        config["prediction"],
        config["clip"],
    )
    noise = jax.numpy.asarray(arrays["noise"])
    z = samplers.ddpm(
        predict,
        schedule,
        noise[0],
        np.arange(schedule.num_steps)[::-1],
        lambda i, shape: noise[i + 1],
    )
    raw = part.module.apply({"params": part.params}, z, method="denormalize")
    np.testing.assert_allclose(raw, arrays["sampled"], atol=1e-4)


def test_it_samples_and_exports(tmp_path, capsys):
    read("trainer", tmp_path)
    with np.load(FILES / "trainer.npz") as arrays:
        given = conditions(arrays)
    prior = Prior.load(tmp_path / "trainer.pth")
    found = prior.sample(given, guidance=2.0, seed=1)
    assert found.shape == (4, 16) and np.isfinite(found).all()
    flags = ["export", f"--run={tmp_path}/trainer.pth", f"--out={tmp_path}/out"]
    options = {"config": False, "extra_flags": export.FLAGS, "argv": flags}
    with pytest.raises(SystemExit) as end:
        export.command_line.run(export.main, **options)
    assert not end.value.code
    assert "exported the prior of" in capsys.readouterr().out
    again = Prior.load(tmp_path / "out").sample(given, guidance=2.0, seed=1)
    np.testing.assert_array_equal(found, again)


def stage(name, folder, **model):
    """A run that is to go on from a file."""
    part, arrays = read(name, folder)
    fields = {k: v for k, v in part.config["model"].items() if k not in stages_decide}
    shapes = {k: a.shape[1:] for k, a in conditions(arrays).items()}
    spec = DataSpec(
        target="target",
        target_shape=part.module.target_shape,
        target_dtype="float32",
        embed_dim=16,
        conditions={k: {"kind": "sequence", "shape": s} for k, s in shapes.items()},
    )
    config = stages.StageConfig(
        stage="embedding_prior",
        data={},
        model={**fields, **model},
        stage_options={"embedding": "raw"},
    )
    return stages.make_stage(config, spec), arrays


stages_decide = ("target_shape", "conditions", "unit_norm", "single_pass")


def run_of(made):
    return {"export": made.export(), "data_info": {}, "config": {}}


@pytest.mark.slow
def test_it_is_fine_tuned(tmp_path):
    """A step from the file's parameters, whose constants stay, lowers the loss."""
    made, arrays = stage("pos_emb", tmp_path)
    params = load_initial(tmp_path / "pos_emb.pth", run_of(made))
    fresh = jax.eval_shape(made.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, fresh)
    assert params["space"]["std"][0, 0] == np.float32(0.25)  # 1 / sqrt(16)
    batch = {"target": arrays["x"] / 4, "brain": arrays["text_embed"]}
    key = jax.random.key(0)
    loss = jax.jit(lambda p: made.loss(p, key, batch)[0])
    before, gradient = jax.value_and_grad(loss)(params)
    assert not np.any(gradient["space"]["std"])
    step = jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)
    assert loss(step) < before
    other, _ = stage("pos_emb", tmp_path, causal=True)
    with pytest.raises(UsageError, match=r"has model.causal False, the config True"):
        load_initial(tmp_path / "pos_emb.pth", run_of(other))


@pytest.mark.slow
def test_no_gradient_is_nan_in_half_precision():
    """bfloat16 at zeros and at 1e4: what the package's norms and cosines trip over."""
    fields = {"depth": 1, "num_heads": 2, "ff_width": 8, "head_width": 8}
    fields |= {"target_shape": (2, 8), "causal": False, "queries": "none"}
    described = {"brain": {"kind": "sequence", "shape": (2, 8)}}
    model = stages.models.build(
        "embedding_prior",
        {"backbone": "dalle2_pytorch", "conditions": described, **fields},
        jax.numpy.bfloat16,
    )
    x, t, drop = np.zeros((1, 2, 8), "f4"), np.zeros(1, int), np.zeros(1, bool)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t, {"brain": x}, drop)
    params = random_params(shapes["params"])

    @jax.jit
    def loss(params, x):
        out = model.apply({"params": params}, x, t, {"brain": x}, drop)
        return (out**2).mean()

    for value in (0.0, 1e4):
        gradient = jax.grad(loss)(params, x + np.float32(value))
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("trainer", {"net": {"depth": 7}}, "its config says depth 7, its tensors 2"),
        ("trainer", {"timesteps": 9}, "its config says timesteps 9, its tensors 12"),
        ("trainer", {"net": {"heads": 3, "headz": 1}}, "headz"),
        ("trainer", {"sampling_clamp_l2norm": True}, "has no counterpart here"),
        ("trainer", {"net": {"self_cond": True}}, "self_cond=True is not supported"),
        ("all_pos_emb", {"net": {"learned_query_mode": "token"}}, "'all_pos_emb'"),
        ("pos_emb", {"net": {"learned_query_mode": "none"}}, "its tensors 'pos_emb'"),
    ],
)
def test_settings_that_do_not_fit(name, settings, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        read(name, tmp_path, settings)


def test_files_that_are_no_prior(tmp_path):
    file = tmp_path / "prior.pth"
    with pytest.raises(FileNotFoundError, match="a prior of DALLE2-pytorch"):
        Prior.load(file)
    torch.save({"weight": torch.ones(2)}, file)
    with pytest.raises(UsageError, match="holds no prior of DALLE2-pytorch"):
        Prior.load(file)
    state = torch.load(FILES / "options.pth", weights_only=True)
    older = {k: a for k, a in state.items() if k != "net.null_text_encodings"}
    torch.save(older, file)
    with pytest.raises(UsageError, match=r"of a version before 1\.9"):
        Prior.load(file)
    torch.save({k: a for k, a in state.items() if "layers.0.0.to_q" not in k}, file)
    with pytest.raises(UsageError, match=r"net\.causal_transformer.*is missing"):
        Prior.load(file)
    state["noise_scheduler.betas"] = torch.full((40,), 0.5)
    torch.save(state, file)
    with pytest.raises(UsageError, match="betas are none of the schedules"):
        Prior.load(file)


class Planted:
    """What a pickle would execute."""

    def __reduce__(self):
        return shutil.copy, ("prior.pth", "executed")


def test_nothing_is_executed(tmp_path, monkeypatch):
    """Objects beside the tensors are passed over, and what they would call."""
    state = torch.load(FILES / "pos_emb.pth", weights_only=True)
    monkeypatch.chdir(tmp_path)
    pathlib.Path("prior.pth").touch()
    pickle.loads(pickle.dumps(Planted()))
    (tmp_path / "executed").unlink()  # it would have worked
    torch.save({"model": state, "planted": Planted()}, "prior.pth")
    Prior.load("prior.pth")
    assert not (tmp_path / "executed").exists()


def test_positions_against_formulas():
    """T5's buckets one by one, and rotations as complex numbers: 1e-5."""
    buckets = relative_buckets(200)
    assert buckets.shape == (200, 201)
    for distance, bucket in ((0, 0), (1, 1), (15, 15), (16, 16), (32, 21), (150, 31)):
        assert buckets[180, 180 - distance] == bucket
    assert not buckets[3, 4:].any()
    x = np.random.default_rng(0).standard_normal((1, 7, 40)).astype("f4")
    z = x[..., :32:2] + 1j * x[..., 1:32:2]
    z = z * np.exp(1j * np.outer(np.arange(7), 10_000.0 ** (-np.arange(16) / 16)))
    found = np.asarray(rotate(x))
    np.testing.assert_allclose(found[..., :32:2], z.real, atol=1e-5)
    np.testing.assert_allclose(found[..., 1:32:2], z.imag, atol=1e-5)
    np.testing.assert_array_equal(found[..., 32:], x[..., 32:])
