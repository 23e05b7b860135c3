"""--images, --make_reference, statistics as reference, and the sweep."""

import csv
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from unclip_jax.config import load
from unclip_jax.evaluation.features import gaussian
from unclip_jax.evaluation.image_sets import open_images
from unclip_jax.evaluation.metrics import frechet
from unclip_jax.evaluation.runner import evaluate

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def run(config, workdir, model=None, **options):
    return evaluate(
        config, workdir, model=model, fingerprint="m", log=lambda line: None, **options
    )


@pytest.fixture
def fid_config(config):
    """FID and precision / recall only, in the stand-in's features."""
    with config.unlocked():
        config.extractors = {"inception": {}}
        config.metrics = {"fid": {}, "precision_recall": {"features": "inception"}}
    return config


def numbers(results):
    return {name: score["value"] for name, score in results["scores"].items()}


def test_pictures_made_elsewhere_are_scored_alike(
    fid_config, source, make_model, inception, tmp_path
):
    drawn = run(fid_config, tmp_path / "drawn", make_model())
    assert "[a stand-in]" in drawn["scores"]["fid"]["text"]
    folder = tmp_path / "pictures"
    folder.mkdir()
    captions = [source[i]["caption"] for i in range(60)]
    images = make_model().text2image(captions)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}.png")
    np.savez(tmp_path / "pictures.npz", arr_0=images)
    fid_config.model = str(tmp_path / "no such model")  # and none is needed
    for where in (folder, tmp_path / "pictures.npz"):
        given = run(fid_config, tmp_path / "given", images=str(where))
        assert numbers(given) == numbers(drawn)
        assert given["provenance"]["n"] == 60
        assert given["provenance"]["images"]["path"] == str(where)
        number = "number: 0000 with the first caption, to 0059"
        by = number if where == folder else "image i of the file with caption i"
        assert by in given["provenance"]["images"]["pairing"]
        assert by in (tmp_path / "given" / "report.html").read_text()
        assert given["scores"]["fid"]["true_pictures"] is not None
    # without captions there is nothing to say about true pictures
    fid_config.data.source = ""
    fid_config.reference = {"images": str(folder)}
    alone = run(fid_config, tmp_path / "alone", images=str(folder))
    assert numbers(alone)["fid"] == pytest.approx(0, abs=1e-9)
    assert alone["scores"]["fid"]["true_pictures"] is None
    page = (tmp_path / "alone" / "report.html").read_text()
    assert f"60 pictures of {folder}, compared with 60 of {folder}" in page
    table = page.partition("Provenance<")[0]
    assert not any(word in table for word in ("chance", ">generated<", "Left:"))
    with fid_config.unlocked():
        fid_config.metrics.r_precision = {"pool": 5}
    with pytest.raises(ValueError, match="'r_precision' looks at captions"):
        run(fid_config, tmp_path / "alone", images=str(folder))


def test_two_folders_are_compared_by_a_config_of_their_own(inception, tmp_path):
    """configs/fid.py: no model, no captions; statistics once made do as well."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(12):
            image = np.random.default_rng((ord(name), i)).integers(0, 256, (8, 8, 3))
            file = tmp_path / name / f"{i}.png"
            Image.fromarray(image.astype(np.uint8)).save(file)
    config = load(str(CONFIGS / "fid.py"))
    with config.unlocked():
        config.extractors.inception = {}
    with pytest.raises(ValueError, match="config.count = 0"):
        run(config, tmp_path / "w")
    config.reference.images = str(tmp_path / "b")
    images = str(tmp_path / "a")
    found = numbers(run(config, tmp_path / "w", images=images))["fid"]
    sets = [open_images(tmp_path / name)[:] for name in "ab"]
    a, b = (inception[-1].image(x)["2048"].astype(np.float32) for x in sets)
    assert found == pytest.approx(frechet.frechet_from_features(a, b), rel=1e-9)
    made = tmp_path / "b.npz"
    run(config, tmp_path / "w", make_reference=str(made))
    config.reference = {"statistics": str(made)}
    again = numbers(run(config, tmp_path / "w", images=images))["fid"]
    assert again == pytest.approx(found, rel=1e-9)
    Image.new("RGB", (12, 8)).save(tmp_path / "a" / "wide.png")
    with pytest.raises(ValueError, match="wide.png 12x8.*crop.*generated=True"):
        run(config, tmp_path / "w", images=images)
    config.crop.update(name="shorter_side", size=8)
    (tmp_path / "a" / "below").mkdir()
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "below" / "0.png")
    cropped = run(config, tmp_path / "w", images=images)
    assert cropped["provenance"]["n"] == 12
    assert "1 images in folders below" in cropped["warnings"][-1]


def test_a_made_reference_is_used_and_checked(
    fid_config, source, make_model, inception, tmp_path
):
    with fid_config.unlocked():
        fid_config.metrics = {"fid": {}, "inception_score": {}}
    path = tmp_path / "reference.npz"
    about = run(fid_config, tmp_path / "w", make_reference=str(path))
    assert about["n"] == 50 and about["layer"] == "2048"
    images = np.stack([source[i]["image"] for i in range(50)])
    features = inception[-1].image(images)["2048"].astype(np.float32)
    mean, covariance = frechet.statistics(features)
    kept = gaussian.read(path)
    np.testing.assert_allclose(kept.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(kept.covariance, covariance, rtol=1e-12, atol=1e-15)

    want = run(fid_config, tmp_path / "w", make_model())
    fid_config.reference = {"statistics": str(path)}
    got = run(fid_config, tmp_path / "w", make_model())
    assert numbers(got)["fid"] == pytest.approx(numbers(want)["fid"], rel=1e-9)
    assert got["provenance"]["reference"]["n"] == 50

    other = gaussian.GaussianStatistics(mean, covariance, {"layer": "64"})
    gaussian.write(path, other)
    with pytest.raises(ValueError, match="layer = '64'.*--make_reference"):
        run(fid_config, tmp_path / "w", make_model())
    with fid_config.unlocked():
        fid_config.metrics = {"kid": {"features": "inception", "subset_size": 9}}
    with pytest.raises(ValueError, match="only their mean and covariance"):
        run(fid_config, tmp_path / "w", make_model())


def test_killed_features_go_on(fid_config, make_model, inception, tmp_path):
    run(fid_config, tmp_path, make_model())
    (work,) = [sum(made.calls) for made in inception]
    assert work == 60 + 60 + 50  # drawn, true and reference, once each
    for path in sorted((tmp_path / "features").rglob("features_*.npz"))[:1]:
        lost = len(np.load(path)["layer_2048"])
        path.unlink()
    run(fid_config, tmp_path, make_model())
    assert sum(inception[-1].calls) == lost


def test_the_sweep_finds_and_labels_the_minimum(
    fid_config, source, make_model, inception, tmp_path
):
    class Guided(type(make_model())):
        """Pictures fade from the truth the farther the guidance is from 2."""

        def text2image(self, prompts, decoder_guidance=1.0, **options):
            images = super().text2image(prompts, **options)
            off = abs(decoder_guidance - 2.0) * 40
            return np.clip(images - off, 0, 255).astype(np.uint8)

    model = Guided(source)
    with fid_config.unlocked():
        fid_config.metrics.clip_score = {}
        fid_config.sweep = {"decoder_guidance": (1.0, 2.0, 4.0), "count": 32}
    results = run(fid_config, tmp_path, model)
    selected = results["provenance"]["selected"]
    assert selected["options"] == {"decoder_guidance": 2.0} and selected["of"] == 3
    assert "was selected" in results["warnings"][0]
    assert results["provenance"]["config"]["generation"]["decoder_guidance"] == 2.0
    assert results["provenance"]["n"] == 60
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["selected"] for row in rows] == ["False", "True", "False"]
    assert min(rows, key=lambda row: float(row["fid"]))["decoder_guidance"] == "2.0"
    assert {row["n"] for row in rows} == {"32"}
    assert len(json.loads((tmp_path / "sweep.json").read_text())["points"]) == 3
    page = (tmp_path / "report.html").read_text()
    assert "trades diversity for fidelity" in page
    for name in ("sweep_fid_clip_score", "sweep_precision_recall_precision_*"):
        (svg,) = tmp_path.glob(f"{name}.svg")
        assert "(selected)" in svg.read_text()
        assert svg.read_text() in page  # the report shows it
    drawn = sum(call[1] for call in model.calls)
    assert drawn == 3 * 32 + 28  # the full evaluation goes on from the sweep's


@pytest.mark.parametrize(
    "sweep,message",
    [
        ({"decoder_guidanc": (1, 2)}, "did you mean 'decoder_guidance'"),
        ({"count": 32}, "no values"),
        ({"decoder_guidance": (1, 2), "select": "clip_score"}, "select"),
        ({"decoder_guidance": (1, 2), "count": 61}, "more than config.count"),
    ],
)
def test_impossible_sweeps_are_refused(
    fid_config, make_model, inception, tmp_path, sweep, message
):
    with fid_config.unlocked():
        fid_config.sweep = sweep
    with pytest.raises(ValueError, match=message):
        run(fid_config, tmp_path, make_model())


def test_captions_can_be_filtered(config, make_model, tmp_path):
    config.count = 20
    with config.unlocked():
        config.caption_filter = "json:loads"
    with pytest.raises(ValueError):  # a caption is no JSON: the function is called
        run(config, tmp_path, make_model())
    config.caption_filter = "json:no_such"
    with pytest.raises(ValueError, match="package.module:function"):
        run(config, tmp_path, make_model())
