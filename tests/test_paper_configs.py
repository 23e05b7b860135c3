"""configs/paper: the paper's numbers, its parameter counts, and that they can train.

Nothing of full size is ever allocated: everything large goes through jax.eval_shape.
"""

import functools
import math
import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import load_complete
from tests.data.benchmark import write_tars
from tests.table_3 import TABLE_3
from unclip_jax import config as config_lib
from unclip_jax import stages
from unclip_jax.config import with_defaults
from unclip_jax.data.degradations import make_degradation
from unclip_jax.data.loader import open_data
from unclip_jax.data.sources import LeftOut, make_source
from unclip_jax.data_spec import DataSpec
from unclip_jax.embedding import config as embedding
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.parallel.sharding import describe, state_shardings
from unclip_jax.training import checkpoint, optimizer
from unclip_jax.training.run_config import config_defaults, read_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# What paper-sized data says of itself. Image sides by config.
PAPER = {
    "embed_dim": 1024,
    "vocab_size": 49408,
    "context_length": 256,
    "eot_id": 49407,
    "embedding_mean": np.zeros(1024),
    "embedding_std": np.ones(1024),
    "clip_fingerprint": "paper",
    "embedding_sample": lambda: sample(1024),
}
SIDES = {"clip": 256, "prior": 64, "ar_prior": 64, "decoder": 64}
SIDES |= {"upsampler_256": 256, "upsampler_1024": 1024}
EFFICIENT = ("upsampler_256:efficient", "upsampler_1024:efficient")

# Millions of parameters and the tolerance, without the caption token embedding (101.2M
# at width 2048), which the counts of reference/PAPER.md leave out as well.
COUNTS = {
    "clip": (935.0, 5),  # ViT-H/16 632 + text 1024 x 24 303
    "prior": (1230.0, 10),
    "ar_prior": (2030.0, 10),  # text encoder 1.21B, latent decoder 0.82B
    "decoder": (3450.0, 15),
    "upsampler_256": (691.6, 0.05),
    "upsampler_1024": (267.1, 0.05),
    "upsampler_256:efficient": (766.3, 0.05),
    "upsampler_1024:efficient": (268.7, 0.05),
}

# Sizes of a model that trains in seconds, for the fields that a config has.
SHRUNK = {
    "embed_dim": 12,
    "patch_size": 8,
    "vision_width": 16,
    "vision_depth": 1,
    "vision_heads": 2,
    "text_width": 16,
    "text_depth": 1,
    "text_heads": 2,
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "channels": 8,
    "head_channels": 4,
    "channel_mult": (1,),
    "attention_resolutions": (16,),
    "low_res_size": 8,
    "context": 10,
    "num_components": 5,
    "num_buckets": 6,
}
SHRUNK_INFO = {**PAPER, "embed_dim": 12, "vocab_size": 31, "context_length": 8}
SHRUNK_INFO |= {"eot_id": 30, "embedding_mean": np.zeros(12)}
SHRUNK_INFO |= {"embedding_std": np.ones(12), "embedding_sample": lambda: sample(12)}


def sample(dim):
    """What the loader's embedding_sample would be: random embeddings."""
    rng = np.random.default_rng(0)
    names = "clip_image", "clip_text"
    return {name: rng.standard_normal((1100, dim), np.float32) for name in names}


def load(name):
    stem, *variant = name.split(":")
    return load_complete(":".join([f"{CONFIGS}/paper/{stem}.py", *variant]))


def data_info(config, side, info):
    """What the loader would say of such data."""
    made = make_degradation(config.data.get("degradation"), side)
    return {
        **info,
        "image_size": side,
        "crop_size": made and made.crop,
        "low_res_size": made and made.low_res_size,
    }


@functools.cache
def paper_stage(name):
    return stage_of(name, load(name))


@functools.cache
def paper_shapes(name):
    """Of the parameters at full size; tracing them takes a second."""
    return jax.eval_shape(paper_stage(name).init, jax.random.key(0))


def stage_of(name, config):
    info = data_info(config, SIDES[name.split(":")[0]], PAPER)
    return stages.make_stage(read_config(config), DataSpec(**info))


def shrunk(name):
    """The config of a model as small as can be, of the same kind, and its stage."""
    config = load(name)
    fields = {k: v for k, v in SHRUNK.items() if k in config.model}
    if "num_res_blocks" in config.model:
        many = isinstance(config.model.num_res_blocks, tuple)
        fields |= {"num_res_blocks": (1,) if many else 1}
        fields |= (
            {"norm_groups": 4, "patch_size": min(2, config.model.patch_size)}
            if ("patch_size" in config.model)
            else {"norm_groups": 4}
        )
    config.model = {**config_lib.to_plain(config.model), **fields}
    if config.data.get("degradation"):
        config.data.degradation.crop = 16
    config.batch_size = 4
    return config, shrunk_stage(config)


def shrunk_stage(config):
    side = 32 if config.stage == "upsampler" else 16
    info = data_info(config, side, SHRUNK_INFO)
    return stages.make_stage(read_config(config), DataSpec(**info))


def count(shapes, without=()):
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    names = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    return sum(
        math.prod(leaf.shape)
        for name, leaf in names
        if not any(part in name for part in without)
    )


def abstract_batch(stage, n):
    return {
        name: jax.ShapeDtypeStruct((n, *shape), dtype)
        for name, (shape, dtype) in stage.batch_spec.items()
    }


@pytest.mark.parametrize("name", ["clip", "upsampler_256", "upsampler_1024"])
def test_tars_are_read_at_the_papers_size(name, tmp_path):
    """What needs no embeddings reads tars as they are, where they may be read only."""
    write_tars(tmp_path / "tars", count=2, tars=1)
    config = config_lib.load(str(CONFIGS / f"paper/{name}.py")).unlock()
    assert config.data.cache.startswith("runs/")
    config.data.path, config.data.cache = (
        str(tmp_path / "tars"),
        str(tmp_path / "index"),
    )
    config.data.tokenizer = ""  # the public one would be fetched
    assert config.data.min_size == SIDES[name]  # nothing is enlarged
    data = open_data(config.data)
    assert [file.suffix for file in (tmp_path / "tars").iterdir()] == [".tar"]
    assert data.spec.image_size == SIDES[name]
    if name == "clip":
        assert data.spec.context_length == PAPER["context_length"]
    else:
        made = make_degradation(config.data.degradation, SIDES[name])
        assert data.spec.low_res_size == made.low_res_size
        assert made.crop == SIDES[name] // 4


def test_records_are_made_of_tars_at_the_papers_sizes(tmp_path):
    """CLIP sees its own size; the decoder gets its own."""
    write_tars(tmp_path / "tars", count=2, tars=1)
    config = config_lib.load(str(CONFIGS / "paper/embed.py"))
    assert config.data.cache.startswith("runs/")
    places = {"path": str(tmp_path / "tars"), "cache": str(tmp_path / "index")}
    with pytest.raises(LeftOut, match="min_size 256"):  # they have 64 pixels
        make_source({**config.data, **places})[0]
    source = make_source({**config.data, **places, "min_size": 0})
    assert source[0]["image"].shape == (SIDES["clip"],) * 2 + (3,)
    assert config.image_size == SIDES["decoder"]
    assert embedding.read_config(config)


@pytest.mark.parametrize("name", sorted(TABLE_3))
def test_the_papers_numbers(name):
    def compare(wanted, got, where):
        for key, value in wanted.items():
            if isinstance(value, dict):
                compare(value, got[key], f"{where}.{key}")
            else:
                assert got[key] == value, f"{where}.{key}"

    config = load(name)
    compare(TABLE_3[name], with_defaults(config, config_defaults(config)), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(COUNTS))
def test_full_sized_losses_have_the_papers_parameter_count(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stage, shapes = paper_stage(name), paper_shapes(name)
    millions, tolerance = COUNTS[name]
    found = count(shapes, ["token_embedding"]) / 1e6
    assert found == pytest.approx(millions, abs=tolerance)
    loss, metrics = jax.eval_shape(
        stage.loss, shapes, jax.random.key(0), abstract_batch(stage, 2)
    )
    assert loss.shape == () and loss.dtype == jnp.float32 and metrics
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**20, f"{grown / 2**20:.1f} GiB were allocated"  # kB; 3 to 14 GiB


def test_the_small_epsilon_decoder_follows_the_papers_recipe():
    """Of configs/icons/decoder_epsilon.py only model, batch and rate are smaller."""
    config = load_complete(CONFIGS / "icons" / "decoder_epsilon.py")
    assert read_config(config)
    paper = load("decoder")
    assert config.model.learned_sigma and paper.model.learned_sigma
    for key in ("schedule", "num_steps", "prediction"):
        assert config.diffusion[key] == paper.diffusion[key]
    for key in ("drop_clip", "drop_text", "embedding"):
        assert config.stage_options[key] == paper.stage_options[key]


@pytest.mark.slow
def test_parts_of_the_decoder():
    """Image tower 2.24B, text tower 1.21B besides the token embedding."""
    shapes = paper_shapes("decoder")
    assert count(shapes["unet"]) / 1e9 == pytest.approx(2.24, abs=0.005)
    text = count(shapes["text"], ["token_embedding"]) / 1e9
    assert text == pytest.approx(1.21, abs=0.005)


def test_parts_of_the_autoregressive_prior():
    """Text encoder 1.21B besides the token embedding; blocks of the decoder 0.80B."""
    shapes = paper_shapes("ar_prior")
    text = count(shapes["text"], ["token_embedding"]) / 1e9
    assert text == pytest.approx(1.21, abs=0.005)
    assert count(shapes["transformer"]) / 1e9 == pytest.approx(0.80, abs=0.005)
    # 384 positions: 64 slots of four caption tokens, z_t, the dot product, and all
    # components but the last
    text_in = shapes["text_in"]["kernel"].shape
    assert text_in == (4 * 2048, 1664) and 64 + 2 + 318 == 384
    assert shapes["positional_embedding"].shape == (384, 1664)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, millions", [("upsampler_256", 729.7), ("upsampler_1024", 282.06)]
)
def test_scale_shift_upsamplers(name, millions):
    config = load(name)
    config.model.scale_shift = True
    shapes = jax.eval_shape(stage_of(name, config).init, jax.random.key(0))
    assert count(shapes) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.slow
def test_the_efficient_upsamplers_do_a_fraction_of_the_arithmetic():
    """4.1 times less for 64 -> 256 and 17 times less for 256 -> 1024, per crop."""
    for name, fraction in zip(EFFICIENT, (0.26, 0.065), strict=True):
        flops = []
        for variant in (name.split(":")[0], name):
            stage, shapes = paper_stage(variant), paper_shapes(variant)
            side = stage.batch_spec["image"][0][0]
            x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
            low = jax.ShapeDtypeStruct((1, side // 4, side // 4, 3), jnp.float32)
            t = jax.ShapeDtypeStruct((1,), jnp.int32)
            lowered = jax.jit(stage.model.apply).lower({"params": shapes}, x, t, low)
            flops.append(lowered.cost_analysis()["flops"])
        assert flops[1] / flops[0] < fraction, name


@pytest.mark.parametrize("name", sorted(TABLE_3))
def test_every_large_array_is_divided_among_the_devices(name):
    shapes = paper_shapes(name)
    devices = make_mesh(data=1, fsdp=8)
    shardings = state_shardings(shapes, devices, load(name).sharding_rules)
    rows = describe(shapes, shardings)
    share = sum(row.bytes_per_device for row in rows) / (4 * count(shapes))
    assert share == pytest.approx(1 / 8, rel=0.02)


@pytest.mark.parametrize("name", [*TABLE_3, *EFFICIENT])
def test_the_loop_takes_the_config(name):
    config = read_config(load(name))
    options = config.optimizer
    assert optimizer.make_optimizer(options, config.steps)
    rate = optimizer.learning_rate(options, config.steps)(options.warmup_steps)
    assert float(rate) == pytest.approx(config.optimizer.learning_rate)


def test_variants_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="variant 'large'"):
        config_lib.load(f"{CONFIGS}/paper/upsampler_256.py:large")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["clip", "prior", "ar_prior", "decoder", "upsampler_1024"]
)
def test_one_step_of_the_shrunk_config(name):
    """Scan, rematerialisation, bfloat16 and learned variance, as they will train."""
    _, stage = shrunk(name)
    rng = np.random.default_rng(0)

    def draw(shape, dtype="float32", scale=1.0):
        if dtype == "float32":
            return (scale * rng.standard_normal(shape)).astype(dtype)
        return rng.integers(0, 30, shape).astype(dtype)

    batch = {k: draw((4, *s), d) for k, (s, d) in stage.batch_spec.items()}
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    params = jax.tree.map(lambda s: draw(s.shape, scale=0.2) + 0.1, shapes)
    step = jax.jit(jax.value_and_grad(stage.loss, has_aux=True))
    (loss, _), grads = step(params, jax.random.key(1), batch)
    assert np.isfinite(loss)
    flat = jax.tree_util.tree_leaves_with_path(grads)
    assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for _, g in flat)
    still = [jax.tree_util.keystr(path) for path, g in flat if not np.any(g)]
    # nothing learns the embedding space and codebook, the null embeddings only where
    # rows dropped something, and softmax does not feel a bias of the keys
    exempt = (*stages.CONSTANTS, "null", "['k']['bias']")
    assert not [p for p in still if not any(part in p for part in exempt)], still


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["clip", "prior", "ar_prior", "decoder", "upsampler_256"]
)
def test_memory_options_are_used_and_recorded(name):
    config, stage = shrunk(name)
    plain = config_lib.to_plain(config)
    meta = checkpoint.make_meta(config.stage, plain, stage.export(), DataSpec())
    recorded = meta["export"]["config"]["model"]
    assert recorded["remat"] and meta["config"]["model"]["remat"]
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    traced = jax.make_jaxpr(stage.loss)(
        shapes, jax.random.key(0), abstract_batch(stage, 2)
    )
    kinds = primitives(traced.jaxpr)
    assert "checkpoint" in kinds or "remat" in kinds or "remat2" in kinds
    if config.stage != "upsampler":
        assert recorded["scan_layers"] and "scan" in kinds
        depths = {k: 3 for k in config.model if k.endswith("depth")}
        config.model.update(depths)
        deep = shrunk_stage(config)
        shapes = jax.eval_shape(deep.init, jax.random.key(0))
        stacked = [
            leaf.shape[0]
            for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
            if "'blocks'" in jax.tree_util.keystr(path)
        ]
        assert stacked and set(stacked) == {3}  # the depth leads
        config.model.scan_layers = False
        loose = shrunk_stage(config)
        assert count(jax.eval_shape(loose.init, jax.random.key(0))) == count(shapes)


def primitives(jaxpr) -> set[str]:
    """Names of all primitives, at any depth."""
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found |= primitives(inner)
    return found
