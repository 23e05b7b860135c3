"""DINOv2 against transformers' own and torch's resampling. float32, <= 1e-4."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from tests.parity.unclip_pipeline import randomise
from unclip_jax import config as config_lib
from unclip_jax.evaluation import features
from unclip_jax.evaluation.features.dinov2 import MEAN, STD, DinoExtractor
from unclip_jax.evaluation.metrics import frechet
from unclip_jax.evaluation.runner import evaluate
from unclip_jax.interop.dinov2 import load_dinov2, resample_positions
from unclip_jax.models.dinov2 import DinoV2

TOLERANCE = 1e-4
PATCH, TRAINED = 14, 70  # 5 x 5 positions
FIELDS = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_ratio=3,
    image_size=TRAINED,
    patch_size=PATCH,
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(transformers' model, the folder it wrote)."""
    import transformers

    config = transformers.Dinov2Config(**FIELDS)
    model = randomise(transformers.Dinov2Model(config), 0).eval()
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder)
    return model, folder


def run_theirs(model, x):
    """The class token's states of normalised (N, S, S, 3)."""
    import torch

    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        return model(x).pooler_output.numpy()


@pytest.mark.parametrize("size", [TRAINED, 3 * PATCH], ids=["trained", "smaller"])
def test_features_are_transformers(theirs, size):
    model, folder = theirs
    fields, params = load_dinov2(folder, size, offset=0)
    x = np.random.default_rng(1).normal(size=(3, size, size, 3)).astype(np.float32)
    found = jax.jit(DinoV2(**fields).apply)({"params": params}, x)
    wanted = run_theirs(model, x)
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


@pytest.mark.parametrize("side", [3, 4, 9])
def test_positions_are_resampled_as_the_original_code_does(side):
    """Which gives torch a scale_factor that is a little too large."""
    import torch

    grid = np.random.default_rng(2).normal(size=(1, 8, 7, 7)).astype(np.float32)
    positions = grid[0].reshape(8, 49).T
    positions = np.concatenate([np.ones((1, 8), np.float32), positions])
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(grid),
        scale_factor=((side + 0.1) / 7,) * 2,
        mode="bicubic",
        antialias=False,
    )
    assert wanted.shape[-2:] == (side, side)
    found = resample_positions(positions, side, 0.1)
    np.testing.assert_array_equal(found[0], 1)
    wanted = wanted.numpy()[0].reshape(8, -1).T
    np.testing.assert_allclose(found[1:], wanted, atol=1e-5)


def test_names_of_older_files_mean_the_same(theirs, tmp_path):
    """Those of the published files, whatever this release of transformers writes."""
    _, folder = theirs
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    for i in range(2):
        layer = f"encoder.layer.{i}.attention"
        for new, old in (
            ("q_proj", "attention.query"),
            ("k_proj", "attention.key"),
            ("v_proj", "attention.value"),
            ("o_proj", "output.dense"),
        ):
            names = f"{layer}.{new}", f"{layer}.{old}"
            for leaf in ("weight", "bias"):
                (have,) = (n for n in names if f"{n}.{leaf}" in tensors)
                other = names[have == names[0]]
                tensors[f"{other}.{leaf}"] = tensors.pop(f"{have}.{leaf}")
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    ours, renamed = (load_dinov2(f, TRAINED)[1] for f in (folder, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, ours, renamed)


def test_pictures_of_any_size_become_features(theirs):
    """Resized by Pillow in floating point, in batches that do not matter."""
    model, folder = theirs
    images = np.random.default_rng(3).integers(0, 256, (5, 40, 96, 3), dtype=np.uint8)
    small = DinoExtractor(folder, batch_size=2, image_size=TRAINED).image(images)[""]
    whole = DinoExtractor(folder, batch_size=64, image_size=TRAINED).image(images)[""]
    np.testing.assert_allclose(small, whole, atol=1e-5)
    resized = [
        [
            Image.fromarray(image[:, :, c].astype(np.float32)).resize(
                (TRAINED, TRAINED), Image.Resampling.BICUBIC
            )
            for c in range(3)
        ]
        for image in images
    ]
    x = np.clip(np.stack([np.stack(r, -1) for r in resized]), 0, 255) / 255
    x = ((x - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    np.testing.assert_allclose(whole, run_theirs(model, x), atol=TOLERANCE)


@pytest.mark.slow
def test_an_evaluation_uses_them(theirs, tmp_path):
    _, folder = theirs
    rng = np.random.default_rng(4)
    sets = [rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8) for n in (40, 50)]
    for name, images in zip("ab", sets, strict=True):
        np.savez(tmp_path / f"{name}.npz", arr_0=images)
    config = config_lib.load("configs/fid.py").unlock()
    config.reference.images = str(tmp_path / "b.npz")
    config.extractors = {"dinov2": {"weights": str(folder)}}
    config.metrics = {"frechet": {"features": "dinov2"}}
    images = str(tmp_path / "a.npz")
    results = evaluate(config, tmp_path / "run", images=images, log=lambda _: None)
    extractor = DinoExtractor(folder)
    wanted = frechet.frechet_from_features(
        *(extractor.image(images)[""] for images in sets)
    )
    score = results["scores"]["frechet"]
    assert score["value"] == pytest.approx(wanted, rel=1e-6)
    assert "DINOv2" in score["text"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn is True; ours can be False"),
        ({"model_type": "dinov2_with_registers"}, "expected 'dinov2'"),
        ({"patch_size": 16}, "of another shape: patch_embedding/kernel"),
        ({"num_hidden_layers": 3}, "encoder.layer.2"),
    ],
)
def test_other_models_are_refused(theirs, tmp_path, changes, message):
    _, folder = theirs
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_dinov2(tmp_path)


def test_a_missing_folder_says_what_is_wanted(tmp_path):
    with pytest.raises(FileNotFoundError, match="facebook/dinov2-large"):
        load_dinov2(tmp_path)
    with pytest.raises(ValueError, match="needs `weights`"):
        features.load(features.read_options({"dinov2": {}}), {"dinov2": [""]})
