"""The contrastive loss: over all devices, by groups, and with SAM."""

import jax
import numpy as np
import pytest

from unclip_jax import stages
from unclip_jax.data_spec import DataSpec
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.parallel.sharding import batch_sharding, replicated
from unclip_jax.stages import clip

N = 16
INFO = {"image_size": 8, "vocab_size": 31, "context_length": 5, "eot_id": 30}
MODEL = {
    "embed_dim": 8,
    "patch_size": 4,
    "vision_width": 16,
    "vision_depth": 1,
    "vision_heads": 2,
    "text_width": 16,
    "text_depth": 1,
    "text_heads": 2,
}


def make_stage(**options):
    config = stages.StageConfig(
        stage="clip", data={}, model=MODEL, stage_options=options
    )
    return stages.make_stage(config, DataSpec(**INFO))


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(make_stage().init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(s):
        return (0.3 * rng.standard_normal(s.shape)).astype(np.float32)

    return {**jax.tree.map(draw, shapes), "logit_scale": np.float32(2.0)}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    return {"image": images, "tokens": rng.integers(0, 31, (N, 5)).astype(np.int32)}


def value_and_grad(stage, params, batch, devices=None):
    """(loss, metrics, gradients); under a mesh over so many devices, if given."""
    run = jax.jit(
        jax.value_and_grad(
            lambda p, b: stage.loss(p, jax.random.key(0), b), has_aux=True
        )
    )
    if devices is None:
        (loss, metrics), grads = run(params, batch)
    else:
        mesh = make_mesh(data=-1, devices=jax.devices()[:devices])
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, replicated(mesh))
            rows = jax.device_put(batch, batch_sharding(mesh))
            (loss, metrics), grads = run(placed, rows)
    return jax.device_get((loss, metrics, grads))


@pytest.fixture(scope="module")
def run_plain():
    stage = make_stage()
    loss = jax.value_and_grad(lambda p, b: stage.loss(p, None, b), has_aux=True)
    return jax.jit(loss)


@pytest.fixture(scope="module")
def plain(run_plain, params, batch):
    (loss, metrics), grads = jax.device_get(run_plain(params, batch))
    return loss, metrics, grads


def assert_same(a, b, atol=1e-5):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=name)


def test_the_loss_is_the_papers_pseudocode(params, batch, plain):
    """Radford et al. 2021, figure 3, in float64."""
    apply = jax.jit(make_stage().model.apply)
    image, text = apply({"params": params}, *batch.values())
    image, text = (np.asarray(x, np.float64) for x in (image, text))
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    logits = image @ text.T * np.exp(2.0)
    by_row = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    by_column = logits - np.log(np.exp(logits).sum(0, keepdims=True))
    expected = -0.5 * (np.diagonal(by_row).mean() + np.diagonal(by_column).mean())
    np.testing.assert_allclose(plain[0], expected, atol=1e-5)
    top1 = (logits.argmax(1) == np.arange(N)).mean()
    np.testing.assert_allclose(plain[1]["image_to_text_top1"], top1)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"group": 1}])
def test_eight_devices_see_the_global_batch(params, batch, plain, options):
    assert_same(value_and_grad(make_stage(**options), params, batch, 8), plain)


@pytest.mark.slow
def test_groups_change_nothing(params, batch, plain):
    assert_same(value_and_grad(make_stage(group=4), params, batch), plain)


@pytest.mark.slow
def test_groups_bound_the_memory(params):
    """Four times the batch in as many groups: activations of one group."""

    def temporary(n, group):
        stage = make_stage(group=group)
        rows = {
            k: jax.ShapeDtypeStruct((n, *s), d)
            for k, (s, d) in stage.batch_spec.items()
        }
        grad = jax.grad(lambda p, b: stage.loss(p, None, b)[0])
        compiled = jax.jit(grad).lower(params, rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(256, 64) < 0.5 * temporary(256, 0)


def sam_by_hand(stage, params, batch, group, rho):
    """(loss, gradients but the logit scale's), one group after the other."""

    @jax.jit
    def through(p, rows, first, others):
        """The batch's loss where `rows`, from number `first`, are embedded by p."""

        def loss(p):
            own = stage._towers(p, rows)
            whole = [
                jax.lax.dynamic_update_slice_in_dim(other, x, first, 0)
                for other, x in zip(others, own, strict=True)
            ]
            return clip.contrastive(whole, np.exp(params["logit_scale"]))[0], whole

        (value, whole), grads = jax.value_and_grad(loss, has_aux=True)(p)
        return value, whole, grads

    def rows(first):
        return jax.tree.map(lambda x: x[first : first + group], batch)

    def embed(copies, whole):
        for first, p in copies.items():
            whole = through(p, rows(first), first, whole)[1]
        return whole

    zeros = [np.zeros((N, 8), np.float32)] * 2
    clean = embed(dict.fromkeys(range(0, N, group), params), zeros)
    moved = {}
    for first in range(0, N, group):
        grads = jax.device_get(through(params, rows(first), first, clean)[2])
        norm = np.sqrt(
            sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(grads))
        )
        moved[first] = jax.tree.map(
            lambda p, g, n=norm: np.float32(p + rho * g / n), params, grads
        )
    perturbed = embed(moved, zeros)
    parts = [through(p, rows(i), i, perturbed) for i, p in moved.items()]
    return parts[0][0], jax.tree.map(lambda *g: sum(g), *(part[2] for part in parts))


def without_scale(tree):
    return {name: value for name, value in tree.items() if name != "logit_scale"}


@pytest.mark.slow
def test_sam_perturbs_each_group_for_itself(params, batch, plain):
    """Two groups on each of eight devices."""
    stage = make_stage(group=1, sam_rho=0.1)
    loss, metrics, grads = value_and_grad(stage, params, batch, 8)
    expected, by_hand = sam_by_hand(stage, params, batch, 1, 0.1)
    np.testing.assert_allclose(loss, expected, atol=1e-5)
    assert_same(without_scale(grads), without_scale(by_hand))
    np.testing.assert_allclose(metrics["sharpness"], loss - plain[0], atol=1e-5)
    assert metrics["sharpness"] > 0


@pytest.mark.slow
def test_sam_of_one_group_is_foret_et_als(params, batch, plain, run_plain):
    """The gradient at w + rho g / |g|, g the plain gradient of the towers."""
    slope = {**plain[2], "logit_scale": np.float32(0)}
    squares = [np.square(g, dtype=np.float64).sum() for g in jax.tree.leaves(slope)]
    step = 0.1 / np.sqrt(sum(squares))
    moved = jax.tree.map(lambda p, g: np.float32(p + step * g), params, slope)
    (expected, _), by_hand = jax.device_get(run_plain(moved, batch))
    loss, _, grads = value_and_grad(make_stage(sam_rho=0.1), params, batch)
    np.testing.assert_allclose(loss, expected, atol=1e-5)
    assert_same(grads, by_hand)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), grads, plain[2])
    assert max(jax.tree.leaves(change)) > 1e-3  # not the plain gradient


def test_the_logit_scale_stops_at_its_bound_and_can_return():
    bound = np.log(100.0)
    grad = jax.jit(jax.grad(lambda x, way: way * clip.at_most(x, bound)))
    assert clip.at_most(5.0, bound) == pytest.approx(bound)
    assert [grad(5.0, way) for way in (-1.0, 1.0)] == [0.0, 1.0]
    assert [grad(4.0, way) for way in (-1.0, 1.0)] == [-1.0, 1.0]


def test_mistakes(params, batch):
    with pytest.raises(ValueError, match="group must be at least 0, got -1"):
        make_stage(group=-1)
    with pytest.raises(ValueError, match="'sam_roh'.*did you mean 'sam_rho'"):
        make_stage(sam_roh=0.1)
    with pytest.raises(ValueError, match="group is 5, but a device has 16"):
        make_stage(group=5).loss(params, None, batch)
