"""From an export folder to a model that draws; and folders that do not fit."""

import dataclasses

import numpy as np
import pytest

from tests.tiny_export import CAPTIONS, write_export
from unclip_jax.files import sha256_folder
from unclip_jax.gaussian import Gaussian
from unclip_jax.generation import UnCLIP
from unclip_jax.generation.loading import check_together, hash_model, load_stack
from unclip_jax.interop import components


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export with a real tokenizer; the models' vocabularies fit it."""
    return write_export(tmp_path_factory.mktemp("exports") / "tiny")


def test_a_model_of_two_folders_has_the_hashes_of_both(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    both = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    before = hash_model(both)
    assert before == ",".join(sha256_folder(tmp_path / name) for name in "ab")
    assert hash_model([tmp_path / "a"]) == sha256_folder(tmp_path / "a")
    (tmp_path / "b" / "file").write_text("other")
    assert hash_model(both) != before


@pytest.mark.slow
def test_an_export_draws(folder):
    model = UnCLIP.load(folder, batch_size=8)
    assert (model.image_size, model.clip_image_size) == (8, 8)
    drawn = model.text2image(CAPTIONS, seed=3, prior_steps=2, decoder_steps=2)
    assert drawn.shape == (3, 8, 8, 3) and drawn.dtype == np.uint8
    assert len({picture.tobytes() for picture in drawn}) == 3


def test_parts_can_be_left_out(folder):
    clip = UnCLIP.load(folder, parts=("clip",), batch_size=8)
    assert list(clip.stack.parts) == ["clip"]
    assert clip.encode_text(["a cat"]).shape == (1, 8)
    assert list(UnCLIP.load(folder, parts="clip").stack.parts) == ["clip"]
    with pytest.raises(ValueError, match="parts: 'klip' is none of clip, prior,"):
        UnCLIP.load(folder, parts=("klip",))


def test_bfloat16(folder):
    half = load_stack(folder, ("clip",), "bfloat16").part("clip").module
    assert half.dtype.__name__ == "bfloat16"
    with pytest.raises(ValueError, match="dtype 'float8'"):
        load_stack(folder, ("clip",), "float8")


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        UnCLIP.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="not a model.*unclip_jax.export"):
        UnCLIP.load(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="is a None; expected one of UnCLIPPipeline"):
        UnCLIP.load(tmp_path)


def test_parts_that_do_not_fit_together(stack, resized):
    prior = resized("prior", embed_dim=16)
    other = dataclasses.replace(stack, parts={**stack.parts, "prior": prior})
    with pytest.raises(ValueError, match="is clip 8, prior 16, ar_prior 8, decoder 8"):
        check_together(other)
    tokenizer = dataclasses.replace(stack.tokenizer, vocab_size=31)
    with pytest.raises(ValueError, match="vocab_size is clip 30.*tokenizer 31"):
        check_together(dataclasses.replace(stack, tokenizer=tokenizer))


def with_convention(stack, kind, convention):
    part = stack.parts[kind]
    config = {**part.config, "embedding": convention}
    part = components.build_component(kind, config, part.params, part.meta, where=kind)
    return dataclasses.replace(stack, parts={**stack.parts, kind: part})


@pytest.mark.parametrize("convention", ["unit_17.2", "unit_scaled"])
@pytest.mark.parametrize("kind", ["prior", "ar_prior"])
def test_embedding_conventions_must_agree(stack, kind, convention):
    unit = with_convention(stack, kind, convention)
    with pytest.raises(ValueError, match=f"the {kind} makes.*decoder wants standard"):
        check_together(unit)
    check_together(with_convention(unit, "decoder", "unit_17.2"))


def test_principal_components_of_unit_embeddings():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 3)) * (3, 1, 0.2) * rng.uniform(1, 9, (200, 1))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    statistics = Gaussian(unit.mean(0), np.cov(unit.T), unit=True)
    np.testing.assert_allclose(statistics.project(z, 3), unit, atol=1e-6)
    lost = [np.square(statistics.project(z, n) - unit).sum(1).mean() for n in (1, 2)]
    variances = np.linalg.eigvalsh(statistics.cov) * 199 / 200
    np.testing.assert_allclose(lost, variances.cumsum()[1::-1], rtol=1e-6)
