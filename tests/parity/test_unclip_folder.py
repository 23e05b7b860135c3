"""Folders of diffusers' UnCLIPPipeline: every component, read and written."""

import json
import shutil

import numpy as np
import pytest

from unclip_jax.generation.loading import load_stack
from unclip_jax.interop import diffusers, lazy, native
from unclip_jax.interop.export import compare, export
from unclip_jax.interop.init_from import load_initial

from .conftest import EMBED_DIM, IMAGE, LARGE, LENGTH

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def stack(reference):
    return load_stack(reference.folder)


def test_all_parts_are_found(stack, reference):
    upsampler = f"upsampler_{LARGE}"
    names = {"clip", "prior", "decoder", upsampler, f"{upsampler}_last"}
    assert stack.parts.keys() == names
    assert stack.parts["decoder"].module.image_size == IMAGE
    assert stack.parts["prior"].module.embed_dim == EMBED_DIM
    assert stack.parts[upsampler].module.low_res_size == IMAGE
    assert stack.tokenizer.context_length == LENGTH
    fingerprints = {p.clip_fingerprint for k, p in stack.parts.items() if "up" not in k}
    assert len(fingerprints) == 1
    usual = stack.parts["prior"].config["diffusion"]
    assert usual["clip"] == 5.0 and usual["sampling_steps"] == 25


def test_the_tokenizer_is_theirs(stack, reference):
    prompts = ["a red heart", "", "two green trees, on a white background! " * 5]
    ours = stack.tokenizer.encode(prompts)
    theirs = reference.pipeline.tokenizer(
        prompts, padding="max_length", max_length=LENGTH, truncation=True
    )
    for row, ids, mask in zip(
        ours, theirs["input_ids"], theirs["attention_mask"], strict=True
    ):
        visible = np.array(mask, bool)
        np.testing.assert_array_equal(row[visible], np.array(ids)[visible])


@pytest.mark.slow
def test_a_folder_without_image_tower_or_super_resolution(reference, tmp_path):
    folder = tmp_path / "text"
    names = ("image_encoder", "super_res_*")
    shutil.copytree(reference.folder, folder, ignore=shutil.ignore_patterns(*names))
    stack = load_stack(folder)
    assert stack.parts.keys() == {"clip", "prior", "decoder"}
    with pytest.raises(ValueError, match="no image tower"):
        clip, image = stack.parts["clip"], np.zeros((1, 8, 8, 3), np.uint8)
        clip.module.apply({"params": clip.params}, image, method="encode_image")
    # what was not asked for is not read
    assert load_stack(folder, ["prior"]).parts.keys() == {"prior"}


@pytest.mark.slow
def test_their_classes_read_what_we_write(stack, reference, tmp_path):
    import transformers
    from diffusers import (
        PriorTransformer,
        UnCLIPScheduler,
        UNet2DConditionModel,
        UNet2DModel,
    )
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    for name, part in stack.parts.items():
        tokens = reference.folder / "tokenizer" if name == "clip" else None
        diffusers.write_part(tmp_path, part, tokenizer=tokens)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index.pop("_class_name") == "UnCLIPPipeline"
    assert index.keys() == diffusers.CLASSES.keys()
    classes = {
        "prior": PriorTransformer,
        "decoder": UNet2DConditionModel,
        "text_proj": UnCLIPTextProjModel,
        "super_res_first": UNet2DModel,
        "super_res_last": UNet2DModel,
        "text_encoder": transformers.CLIPTextModelWithProjection,
        "image_encoder": transformers.CLIPVisionModelWithProjection,
    }
    originals = {**reference.pipeline.components}
    originals["image_encoder"] = reference.image_encoder
    for name, cls in classes.items():
        options = {"output_loading_info": True}
        module, info = cls.from_pretrained(tmp_path / name, **options)
        assert not any(info.get(k) for k in ("missing_keys", "unexpected_keys")), info
        found = module.state_dict()
        for key, value in originals[name].state_dict().items():
            np.testing.assert_array_equal(found[key].numpy(), value.numpy(), key)
    for name in ("prior", "decoder", "super_res"):
        theirs = UnCLIPScheduler.from_pretrained(tmp_path / f"{name}_scheduler")
        wanted = originals[f"{name}_scheduler"].config
        for key, value in wanted.items():
            if not key.startswith("_"):
                assert theirs.config[key] == value, key
    again = load_stack(tmp_path)
    for name, part in stack.parts.items():
        flat = native.flatten(again.parts[name].params)
        for path, a in native.flatten(part.params).items():
            np.testing.assert_allclose(flat[path], a, atol=1e-6, err_msg=path)


def test_parts_of_another_clip_are_refused(stack, tmp_path):
    import dataclasses

    diffusers.write_part(tmp_path, stack.parts["prior"])
    other = dataclasses.replace(stack.parts["decoder"], clip_fingerprint="0" * 64)
    with pytest.raises(ValueError, match="would mix parts of different CLIPs"):
        diffusers.write_part(tmp_path, other)


def test_broken_folders_say_what_is_wrong(reference, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(reference.folder, folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="is a StableDiffusionPipeline; expected"):
        load_stack(folder)
    shutil.copy(reference.folder / "model_index.json", index)
    (folder / "prior_scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="scheduler_config.json is missing"):
        load_stack(folder)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(FileNotFoundError, match="text_encoder"):
        load_stack(folder)


def test_a_run_is_exported_for_their_classes(stack, tmp_path):
    from diffusers import PriorTransformer

    part = stack.parts["prior"]
    meta = {
        "step": 7,
        "config": {},
        "export": {"part": "prior", "config": part.config},
        "data_info": {"clip_fingerprint": part.clip_fingerprint},
    }
    arguments = part.params, meta, tmp_path / "run", tmp_path / "out", "diffusers"
    assert "step 7" in export(*arguments) and "for diffusers" in export(*arguments)
    theirs = PriorTransformer.from_pretrained(tmp_path / "out" / "prior")
    mean = theirs.clip_mean.detach().numpy()[0]
    np.testing.assert_array_equal(mean, part.params["space"]["mean"])
    with pytest.raises(ValueError, match="'pickle': expected one of native, diffusers"):
        export(*arguments[:-1], "pickle")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_is_verified(stack, reference, tmp_path, dtype):
    """All parts, read back by the functions that load them; a flipped byte is found."""
    out = tmp_path / "out"
    for kind, part in stack.parts.items():
        flat = native.flatten(part.params)
        meta = {
            "step": 7,
            "config": {},
            "export": {"part": kind, "config": part.config},
            "data_info": {
                "clip_fingerprint": stack.parts["clip"].clip_fingerprint,
                "tokenizer_folder": str(reference.folder / "tokenizer"),
            },
        }
        params = lazy.tree(part.params, flat.__getitem__)
        arguments = params, meta, tmp_path / "run", out, "diffusers", dtype
        export(*arguments)
        assert "none differs" in compare(*arguments)
    name = native.leaves(part.params).__next__()[0]
    other = lazy.tree(part.params, {**flat, name: flat[name] + 1}.__getitem__)
    with pytest.raises(ValueError, match=f"{name} differs"):
        compare(other, *arguments[1:])
    file = out / "decoder" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 16
    file.write_bytes(data)
    with pytest.raises(ValueError, match="decoder/.*is not the file that was exported"):
        compare(*arguments)


@pytest.mark.parametrize("kind", ["prior", "decoder", f"upsampler_{LARGE}"])
def test_training_starts_from_any_of_their_parts(stack, reference, kind):
    part = stack.parts[kind]
    run = {"export": {"part": kind, "config": part.config}, "data_info": {}}
    found = native.flatten(load_initial(reference.folder, run))
    for path, a in native.flatten(part.params).items():
        if not path.startswith("empty_"):  # the records have that
            np.testing.assert_array_equal(found[path], a, path)
