"""The evaluation end to end on a fake model: results, resuming, refusals."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

from unclip_jax.evaluation.config import make_metrics, read_config
from unclip_jax.evaluation.generate import generate
from unclip_jax.evaluation.report import extremes, html
from unclip_jax.evaluation.runner import evaluate
from unclip_jax.generation.picture_folder import PictureFolder
from unclip_jax.images import read_metadata

FILES = {"results.json", "pictures.jsonl", "samples.png", "report.html"}
FILES |= {"best_and_worst.html"}


def run(config, workdir, model, fingerprint="m1"):
    lines = []
    results = evaluate(
        config, workdir, model=model, fingerprint=fingerprint, log=lines.append
    )
    return results, "\n".join(lines)


def test_results_say_what_was_drawn(config, make_model, tmp_path):
    results, text = run(config, tmp_path, make_model())
    scores = results["scores"]
    # The model draws all colours right and every third glyph wrong.
    assert scores["icons/background"]["value"] == 1.0
    assert scores["icons/glyph_colour"]["value"] == 1.0
    assert scores["icons/glyph_top1"]["value"] == pytest.approx(40 / 60)
    assert scores["icons/all"]["value"] == pytest.approx(40 / 60)
    assert scores["icons/glyph_top1"]["true_pictures"] == 1.0
    assert 0.02 < scores["icons/glyph_top1"]["chance"] < 0.2
    assert 0.1 < scores["icons/background"]["chance"] < 0.35
    assert scores["icons/glyph_top1"]["stderr"] == pytest.approx(
        np.sqrt(2 / 9 / 60), rel=1e-6
    )
    assert scores["r_precision"]["true_pictures"] > scores["r_precision"]["value"]
    assert scores["r_precision"]["value"] > 0.5 > 0.2 > scores["r_precision"]["chance"]
    clip = scores["clip_score"]
    assert clip["true_pictures"] == pytest.approx(1.0)
    assert clip["chance"] < clip["value"] < 1.0
    assert scores["frechet_clip"]["chance"] is None
    assert scores["frechet_clip"]["better"] == "lower"
    assert scores["frechet_clip"]["value"] > 0
    assert any("rank-deficient" in note for note in results["warnings"])
    about = results["provenance"]
    assert about["conventions"]["clip_score"]["convention"] == "cosine"
    assert about["model"]["fingerprint"] == "m1"
    assert about["model"]["drawn_with"] == {"decoder": {"guidance": 1.0}}
    assert "decoder: guidance 1.0" in text
    assert about["captions"]["source_fingerprint"] == "source-of-blobs"
    assert about["versions"]["numpy"] == np.__version__
    assert about["config"]["count"] == 60

    assert FILES <= {p.name for p in tmp_path.iterdir()}
    assert not list(tmp_path.rglob("*.partial"))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    rows = [json.loads(x) for x in (tmp_path / "pictures.jsonl").open()]
    assert len(rows) == 60 and rows[0]["results"]["icons/glyph_top1"] == 0
    assert rows[1]["results"]["icons/all"] == 1
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 8 and rows[0]["caption"] in page
    links = re.findall(r'(?:src|href)="(?!data:)([^"]*)', page)  # nothing from outside
    single = [*rows[0]["results"]]
    assert links == [f"best_and_worst.html#{name}" for name in scores if name in single]
    ends = (tmp_path / "best_and_worst.html").read_text()
    assert all(f'<h2 id="{name}">' in ends for name in single)
    assert {"clip_score", "r_precision", "icons/all"} <= {*single}
    # two checks that every picture passes, and plain backgrounds
    assert ends.count("<p>1 for every picture.</p>") == 2
    assert ends.count("<p>0 for every picture.</p>") == 1
    assert ends.count("<figure>") == 2 * 6 * (len(single) - 3)
    assert re.findall(r'(?:src|href)="(?!data:)([^"]*)', ends) == ["report.html"]
    assert (tmp_path / "samples.png").read_bytes()[:4] == b"\x89PNG"
    for name in scores:
        assert name in text and name in page
    assert "66.7% ± 6.1" in text
    assert "<details><summary>Provenance" in page
    warnings = {"a: much", "b: much", "other: much", "alone"}
    merged = html._merge(sorted(warnings), {"a": {}, "b/c": {}})
    assert merged == ["a, b: much", "alone", "other: much"]


def test_a_killed_evaluation_goes_on(config, make_model, tmp_path):
    whole, _ = run(config, tmp_path / "whole", make_model())
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "killed", make_model(die_after=2))
    again = make_model()
    results, text = run(config, tmp_path / "killed", again)
    assert [call[0] for call in again.calls] == [32, 48]
    assert "32 are there already" in text
    assert results["scores"] == whole["scores"]
    key = "images_sha256"
    assert results["provenance"][key] == whole["provenance"][key]


@pytest.mark.slow
def test_kept_pictures_belong_to_their_setting(config, make_model, tmp_path):
    run(config, tmp_path, make_model())
    config.metrics.r_precision.pool = 10
    model = make_model()
    run(config, tmp_path, model)
    assert model.calls == []  # another metric needs no new pictures
    config.generation = {**config.generation, "decoder_guidance": 5.0}
    run(config, tmp_path, model)
    assert len(model.calls) == 4
    assert model.calls[0][3]["decoder_guidance"] == 5.0
    run(config, tmp_path, model, fingerprint="m2")
    assert len(model.calls) == 8


def test_generated_images_are_kept_and_mended(config, make_model, source, tmp_path):
    def folder(name="one", setting=0):
        captions = source.captions(5)
        return PictureFolder(tmp_path / name, captions, {"setting": setting})

    def draw(model, where, count=5):
        config.count = count
        return generate(model, where, read_config(config), len)

    def expected(i):
        return make_model().text2image(source.captions(5))[i]

    model = make_model()
    config.generation.batch_size = 3
    images = draw(model, folder())
    assert [call[:2] for call in model.calls] == [(0, 3), (3, 2)]
    np.testing.assert_array_equal(images[:], expected(slice(0, 5)))
    np.testing.assert_array_equal(images[2:4], expected(slice(2, 4)))
    assert images[5:].shape[0] == 0
    about = read_metadata(tmp_path / "one/000004.png")
    assert about["prompt"] == source.captions(5)[4] and about["index"] == "4"
    first = draw(model, folder(), 4)
    np.testing.assert_array_equal(first[:], expected(slice(0, 4)))
    assert len(model.calls) == 2 and first.fingerprint != images.fingerprint
    config.generation.batch_size = 5  # in other batches: the same images
    other = draw(make_model(), folder("other"))
    assert other.fingerprint == images.fingerprint
    path = tmp_path / "one/000003.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    config.generation.batch_size = 3
    with pytest.warns(UserWarning, match="000003.png.*made again"):
        again = draw(model, folder())
    assert [call[:2] for call in model.calls[2:]] == [(3, 2)]
    assert path.read_bytes() == whole and again.fingerprint == images.fingerprint
    path.write_bytes(b"changed")
    with pytest.raises(ValueError, match="000003.png"):
        again[:]
    with pytest.raises(ValueError, match="of other settings"):
        folder(setting=1)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda c: c.metrics.update(fretchet={}), "did you mean 'frechet'"),
        (lambda c: c.metrics.r_precision.update(pol=3), "did you mean 'pool'"),
        (lambda c: c.generation.update(decoder_guidanc=3), "decoder_guidance"),
        (lambda c: c.update(sed=3), "did you mean 'seed'"),
        (lambda c: c.update(select="last"), "expected one of"),
        (lambda c: c.update(count=10), "needs at least 20 images"),
        (lambda c: c.update(count=1000), "the source has only 200"),
        (lambda c: c.generation.update(batch_size=0), "at least 1"),
    ],
)
def test_refusals_come_before_any_picture(
    config, make_model, tmp_path, change, message
):
    model = make_model()
    with config.unlocked():
        change(config)
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path / "out", model)
    assert model.calls == [] and not (tmp_path / "out").exists()


def test_missing_export_is_named(config, source, tmp_path):
    config.model = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="unclip_jax.export"):
        evaluate(config, tmp_path / "out")


def test_other_size_is_explained(config, make_model, tmp_path):
    model = make_model()
    model.image_size = 32
    with pytest.raises(ValueError, match="config.data.image_size=32"):
        run(config, tmp_path, model)


def test_every_registered_metric_runs(config, make_model, inception, tmp_path):
    from unclip_jax.evaluation.metrics import metrics

    random = np.random.default_rng(0)
    shapes = {"0.weight": (4, 67), "0.bias": 4, "2.weight": (1, 4), "2.bias": 1}
    layers = {f"layers.{k}": random.normal(size=s) for k, s in shapes.items()}
    safetensors.numpy.save_file(layers, tmp_path / "aesthetic.safetensors")
    with config.unlocked():
        config.metrics = {name: {} for name in metrics()}
        config.extractors = {"inception": {}}
        config.metrics.aesthetic = {"weights": str(tmp_path / "aesthetic.safetensors")}
        config.metrics.kid = {"subset_size": 30, "subsets": 3}
        config.metrics.r_precision = {"pool": 20}
    assert len(make_metrics(read_config(config), 60)) == len(metrics())
    results, _ = run(config, tmp_path, make_model())
    want = {
        f"{name}/{q}" if q else name
        for name, metric in metrics().items()
        for q in metric.quantities
    }
    assert set(results["scores"]) == want


def test_the_ends_of_scores():
    assert extremes.ends([0.3, 0.1, 0.9, 0.1, 0.9], 2) == ([2, 4], [1, 3])
    assert extremes.ends([1.0, 0.0, 1.0], 6) == ([0], [1])
    assert extremes.ends([1.0, 0.0, 1.0, 1.0], 2) == ([0, 2], [1])
    assert extremes.ends([1.0, 1.0], 2) == ([], [])


def test_where_less_is_better_the_least_comes_first():
    pixels = np.zeros((4, 2, 2, 3), np.uint8)
    rows = [{"caption": f"caption {i}"} for i in range(4)]
    scores = {"a": {"better": "lower"}, "b": {"better": ""}}
    values = {"a": [4.0, 1.5, 3.0, 2.0], "b": [4.0, 1.5, 3.0, 2.0]}
    page = extremes.page(scores, values, rows, pixels, count=1)
    shown = re.findall(r"<h[23][^>]*>([^<]*)|<figcaption>([^<]*)|<span>([^<]*)", page)
    assert ["".join(found) for found in shown] == [
        *("a", "Best", "caption 1", "a 1.5", "Worst", "caption 0", "a 4"),
        *("b", "Highest", "caption 0", "b 4", "Lowest", "caption 1", "b 1.5"),
    ]
