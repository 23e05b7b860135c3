"""Adapters between our runs and what diffusers and PEFT load and save.

Weights and adapters are random; outputs are of order 1.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.parity.our_noise import to_torch
from unclip_jax.generation.loading import load_stack
from unclip_jax.interop import diffusers_lora, mapping
from unclip_jax.interop.export import compare, export
from unclip_jax.models.layers import timestep_embedding
from unclip_jax.models.lora import init_adapters, merge_adapters
from unclip_jax.stages.lora import ATTENTION

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

RANK, ALPHA = 3, 6.0
T = np.array([3, 900])


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def adapt(part):
    """Adapters of all attention, none of them zero."""
    adapters = init_adapters(jax.random.key(0), part.params, RANK, ATTENTION)
    leaves, tree = jax.tree.flatten(adapters)
    scaled = [0.2 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, scaled)


def export_adapters(part, adapters, folder, **meta):
    """What `export --format=lora` does with a run of them."""
    run = {
        "step": 5,
        "config": {"lora": {"rank": RANK, "alpha": ALPHA}, "init_from": "unused"},
        "export": {"part": part.kind, "config": part.config},
        "data_info": {},
        **meta,
    }
    params = {"adapters": adapters, "of_data": {}}
    arguments = params, run, "runs/lora", folder, "lora"
    said = export(*arguments)
    assert f"the adapters of the {part.kind} of runs/lora (step 5, rank 3)" in said
    assert "none differs" in compare(*arguments)
    return arguments


class Kandinsky:
    """Its decoder's UNet."""

    kind, prefix = "decoder", "unet"

    def __init__(self, kandinsky, stable, model):
        del stable
        self.folders, self.part = kandinsky.folders, model.stack.part("decoder")
        self.theirs = diffusers.UNet2DConditionModel.from_pretrained(
            kandinsky.folders[1] / "unet"
        )

    def adapt_theirs(self, folder):
        self.theirs.load_lora_adapter(
            folder, prefix=self.prefix, weight_name=diffusers_lora.FILE
        )

    def run_theirs(self):
        cond = {"image_embeds": torch.from_numpy(normal(1, 2, 24))}
        x, t = to_torch(normal(0, 2, 8, 8, 4)), torch.from_numpy(T)
        out = self.theirs(x, t, None, added_cond_kwargs=cond).sample
        return out.detach().permute(0, 2, 3, 1).numpy()

    def run_ours(self, params):
        tokens, no = jnp.zeros((2, 20), jnp.int32), jnp.zeros(2, bool)
        inputs = normal(0, 2, 8, 8, 4), T, normal(1, 2, 24), tokens, no, no
        return np.asarray(self.part.module.apply({"params": params}, *inputs))


class Stable(Kandinsky):
    """Stable unCLIP's UNet, by its pipeline's own front door."""

    def __init__(self, kandinsky, stable, model):
        del kandinsky, model
        self.folders = stable[1]
        self.part = load_stack(stable[1]).part("decoder")
        self.pipeline = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(stable[1])
        self.theirs = self.pipeline.unet

    def adapt_theirs(self, folder):
        self.pipeline.load_lora_weights(folder)

    def run_theirs(self):
        x, t = to_torch(normal(0, 2, 8, 8, 4)), torch.from_numpy(T)
        level = timestep_embedding(np.array([0, 400]), 24)
        label = np.concatenate([normal(1, 2, 24), level], axis=1)
        states, label = torch.from_numpy(normal(2, 2, 20, 32)), torch.from_numpy(label)
        out = self.theirs(x, t, states, class_labels=label).sample
        return out.detach().permute(0, 2, 3, 1).numpy()

    def run_ours(self, params):
        no, states = jnp.zeros(2, bool), normal(2, 2, 20, 32)
        inputs = normal(0, 2, 8, 8, 4), T, normal(1, 2, 24), None, no, no, None, states
        level = jnp.array([0, 400])
        return np.asarray(self.part.module.apply({"params": params}, *inputs, level))


class Prior(Kandinsky):
    """Its prior."""

    kind, prefix = "prior", "prior"

    def __init__(self, kandinsky, stable, model):
        del stable
        self.folders, self.part = kandinsky.folders, model.stack.part("prior")
        self.theirs = diffusers.PriorTransformer.from_pretrained(
            kandinsky.folders[0] / "prior"
        )

    def run_theirs(self):
        arrays = normal(0, 2, 24), T, normal(1, 2, 24), normal(2, 2, 20, 24)
        mask = torch.ones(2, 20, dtype=torch.bool)
        out = self.theirs(*map(torch.from_numpy, arrays), mask)
        return out.predicted_image_embedding.detach().numpy()

    def run_ours(self, params):
        tokens = np.full((2, 20), 3)
        tokens[:, -1] = self.part.module.eot_id  # nothing is masked
        x, z, states = normal(0, 2, 24), normal(1, 2, 24), normal(2, 2, 20, 24)
        inputs = x, T, tokens, z, jnp.zeros(2, bool), states
        return np.asarray(self.part.module.apply({"params": params}, *inputs))


@pytest.fixture(params=[Kandinsky, Stable, Prior])
def case(request, kandinsky, stable, model):
    return request.param(kandinsky, stable, model)


@pytest.mark.slow
def test_both_directions(case, tmp_path):
    """Theirs with our adapters draws ours; ours with those they save draws theirs."""
    adapters = adapt(case.part)
    export_adapters(case.part, adapters, tmp_path / "ours")
    merged = merge_adapters(case.part.params, adapters, ALPHA / RANK)
    ours, before = case.run_ours(merged), case.run_theirs()
    assert np.abs(ours - before).max() > 0.05
    case.adapt_theirs(tmp_path / "ours")
    np.testing.assert_allclose(case.run_theirs(), ours, atol=1e-4)

    case.theirs.unload_lora()
    names = set(diffusers_lora.layer_names(case.kind, case.part.module).values())
    layers = [n for n in names if n.rpartition(".")[2] in ("to_q", "add_v_proj")]
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=layers)
    case.theirs.add_adapter(config, "another")
    with torch.no_grad():
        for name, p in case.theirs.named_parameters():
            if "lora_" in name:
                generator = torch.Generator().manual_seed(len(name))
                p.normal_(std=0.2, generator=generator)
    case.theirs.save_lora_adapter(tmp_path / "theirs", "another")
    for file in (tmp_path / "theirs", tmp_path / "theirs" / diffusers_lora.FILE):
        stack = load_stack(case.folders, lora=file)
        drawn = case.run_ours(stack.part(case.kind).params)
        np.testing.assert_allclose(drawn, case.run_theirs(), atol=1e-4)
    assert np.abs(drawn - before).max() > 0.01


def test_one_file_holds_both(model, tmp_path):
    """The prior's and the decoder's, read into the stack; each is replaced alone."""
    parts = {kind: model.stack.part(kind) for kind in ("decoder", "prior")}
    adapters = {kind: adapt(part) for kind, part in parts.items()}
    for kind in ("decoder", "prior", "decoder"):
        arguments = export_adapters(parts[kind], adapters[kind], tmp_path)
    merged = diffusers_lora.merge_lora(model.stack.parts, tmp_path)
    for kind, part in parts.items():
        expected = merge_adapters(part.params, adapters[kind], ALPHA / RANK)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            merged[kind],
            expected,
        )
    with pytest.raises(ValueError, match="which is no layer .* parts clip, decoder"):
        only = {kind: model.stack.part(kind) for kind in ("clip", "decoder")}
        diffusers_lora.merge_lora(only, tmp_path)
    file = tmp_path / diffusers_lora.FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match="is not the file that was exported"):
        compare(*arguments)


def test_stacked_blocks(model, tmp_path):
    """Adapters of a prior whose layers are stacked, written and read."""
    part = model.stack.part("prior")
    stacked = mapping.stack_blocks(part.params)
    fields = {**part.config["model"], "scan_layers": True}
    tree = adapt(part)
    name = next(iter(tree["transformer"]))
    both = mapping.stack_blocks(tree)
    assert name.startswith("block_") and "blocks" in both["transformer"]
    module = part.module.clone(scan_layers=True)
    ours = diffusers_lora.to_torch("prior", module, both, 2.0)
    plain = diffusers_lora.to_torch("prior", part.module, tree, 2.0)
    assert ours.keys() == plain.keys()
    for key, array in plain.items():
        np.testing.assert_array_equal(ours[key], array)
    diffusers_lora.write_lora(tmp_path, "prior", ours, "float16")
    part = type(part)(
        part.kind, module, stacked, {**part.config, "model": fields}, None, {}
    )
    merged = diffusers_lora.merge_lora({"prior": part}, tmp_path)["prior"]
    expected = mapping.stack_blocks(
        merge_adapters(model.stack.part("prior").params, tree, 2.0)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), merged, expected
    )


def test_files_of_diffusers_older_scripts(model, tmp_path):
    """Names of attention processors, and alphas beside the tensors."""
    a, b = normal(0, 2, 64), normal(1, 64, 2)
    block = "mid_block.attentions.0.processor"
    tensors = {
        f"{block}.add_k_proj_lora.down.weight": normal(2, 2, 16),
        f"{block}.add_k_proj_lora.up.weight": b,
        f"{block}.to_out_lora.down.weight": a,
        f"{block}.to_out_lora.up.weight": b,
        "mid_block.attentions.0.to_out.0.alpha": np.array(3, np.float32),
    }
    file = tmp_path / "old.safetensors"
    safetensors.numpy.save_file(tensors, file)
    part = model.stack.part("decoder")
    merged = diffusers_lora.merge_lora({"decoder": part}, file)["decoder"]
    for name, expected in (
        ("out", 1.5 * (b @ a).T),
        ("context_k", (b @ normal(2, 2, 16)).T),
    ):
        found = merged["unet"]["mid_attn"][name]["kernel"]
        before = part.params["unet"]["mid_attn"][name]["kernel"]
        np.testing.assert_allclose(found - before, expected, atol=1e-5)


def layer(a=(2, 64), b=(64, 2), name="mid_block.attentions.0.to_q"):
    return {
        f"unet.{name}.lora_A.weight": np.zeros(a, np.float32),
        f"unet.{name}.lora_B.weight": np.zeros(b, np.float32),
    }


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (layer(name="conv_in"), {}, "adapts unet.conv_in, which is no layer"),
        (layer(a=(2, 60)), {}, "kernel of 60 x 64, the decoder's is 64 x 64"),
        (layer(b=(64, 3)), {}, "A and B of .*to_q have shapes"),
        (layer(a=(2, 64, 1, 1)), {}, "only adapters of dense"),
        ({"unet.x.lora_magnitude_vector": np.ones(2)}, {}, "no tensor of LoRA"),
        (layer(), {"unet.r": 2, "unet.use_dora": True}, "use_dora True, which is not"),
        (layer(), {"r": 2, "rank_pattern": {"q": 3}}, "rank_pattern"),
        ({}, {}, "adapts nothing"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    model, tensors, config, message, tmp_path
):
    header = {diffusers_lora.METADATA: json.dumps(config)} if config else None
    file = tmp_path / diffusers_lora.FILE
    safetensors.numpy.save_file(tensors, file, header)
    with pytest.raises(ValueError, match=message):
        diffusers_lora.merge_lora({"decoder": model.stack.part("decoder")}, file)


def test_runs_without_names_in_diffusers_are_refused(model, tmp_path):
    part = model.stack.part("decoder")
    fields = {**part.config["model"], "caption": "tokens"}
    unknown = {"clip_to_time": {"a": normal(0, 24, 2), "b": normal(0, 2, 128)}}
    with pytest.raises(ValueError, match="no name for an adapter of clip_to_time"):
        export_adapters(part, unknown, tmp_path)
    with pytest.raises(ValueError, match="no names for the adapters of this decoder"):
        export_adapters(
            part,
            unknown,
            tmp_path,
            export={"part": "decoder", "config": {"model": fields}},
        )
    meta = {"export": {"part": "decoder"}, "config": {}}
    with pytest.raises(ValueError, match="all parameters of the decoder of run were"):
        export({"unet": {}}, meta, "run", tmp_path, "lora")
    assert not list(tmp_path.iterdir())
