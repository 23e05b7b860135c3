"""What parity tests share: the smallest whole unCLIP of diffusers and transformers,
and weights for the FID programs; all random."""

import dataclasses
import pathlib
from typing import Any

import pytest

from tests.environment import one_device
from tests.parity.unclip_pipeline import Sizes, make_pipeline, randomise

TINY = Sizes()
EMBED_DIM, LENGTH = TINY.embed_dim, TINY.length
IMAGE, LARGE = TINY.image, TINY.large
CAPTIONS = ("a red heart on a white background", "a blue cat", "two green trees, old")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A pipeline in memory and the folder that its save_pretrained wrote."""

    pipeline: Any
    image_encoder: Any
    folder: pathlib.Path


def make_image_encoder():
    """transformers' image tower in the same embedding space."""
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=EMBED_DIM,
    )
    return randomise(transformers.CLIPVisionModelWithProjection(config), 9)


@pytest.fixture(scope="session")
def randomised():
    """`randomise`, for tests that make a module of their own."""
    return randomise


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Reference:
    """The tiny pipeline, saved by the libraries' own save_pretrained."""
    from unclip_jax.tokenizer import train_tokenizer

    root = tmp_path_factory.mktemp("diffusers")
    train_tokenizer(CAPTIONS * 5, root / "trained", vocab_size=560)
    pipeline = make_pipeline(root / "trained", TINY)
    image_encoder = make_image_encoder()
    folder = root / "unclip"
    pipeline.save_pretrained(folder)
    image_encoder.save_pretrained(folder / "image_encoder")
    return Reference(pipeline, image_encoder, folder)


@pytest.fixture(scope="session")
def fid_folder(tmp_path_factory):
    """A folder with weights.pth and weights.npz, see fid_programs.weights."""
    from tests.parity import fid_programs

    if not fid_programs.available():
        pytest.skip(f"the FID programs are not in {fid_programs.PROGRAMS}: make test")
    folder = tmp_path_factory.mktemp("fid")
    fid_programs.reference("weights", folder)
    return folder


@pytest.fixture(scope="session")
def kandinsky(tmp_path_factory):
    """Kandinsky 2.2's two pipelines, tiny, and the folders that they saved."""
    from tests.parity.kandinsky_pipeline import make_kandinsky
    from unclip_jax.tokenizer import train_tokenizer

    root = tmp_path_factory.mktemp("kandinsky")
    train_tokenizer(CAPTIONS * 5, root / "trained", vocab_size=560)
    return make_kandinsky(root, root / "trained")


@pytest.fixture(scope="session")
def model(kandinsky):
    """Both folders, as we load them."""
    from unclip_jax.generation import UnCLIP

    return UnCLIP.load(kandinsky.folders, mesh=one_device(), batch_size=2)


@pytest.fixture(scope="session")
def stable(tmp_path_factory):
    """(Stable unCLIP's pipeline of variations, tiny; the folder that it saved)."""
    from tests.parity.stable_pipeline import make_stable, save

    return save(make_stable, tmp_path_factory.mktemp("stable"))


@pytest.fixture(scope="session")
def stable_text(tmp_path_factory):
    """The same of its pipeline for texts."""
    from tests.parity.stable_pipeline import make_stable_text, save

    return save(make_stable_text, tmp_path_factory.mktemp("stable_text"))


@pytest.fixture
def floats(monkeypatch):
    """Our pictures as floats in [-1, 1], before they are rounded."""
    function = "unclip_jax.diffusion.process.to_uint8"
    monkeypatch.setattr(function, lambda x: x.clip(-1, 1))
