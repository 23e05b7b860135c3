"""configs/paper/eval_coco30k.py on a tiny COCO: of TFDS, and tars of img2dataset."""

import io
import json
import pathlib
import sys
import tarfile
import types
import zlib

import numpy as np
import pytest
from PIL import Image

from unclip_jax.config import load
from unclip_jax.evaluation.runner import evaluate

CONFIG = pathlib.Path(__file__).parents[2] / "configs/paper/eval_coco30k.py"
SPLITS = ("restval", "val", "test")  # of which the config takes all
EACH, SIZE, COUNT = 6, 16, 9


def picture(number):
    """uint8 (20, 24, 3): wider than high, so that it must be cropped."""
    return np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)


def captions(number):
    kind = "dog" if number % 3 else "cat"
    return [f"a {kind} of number {number}", f"number {number} again"]


def coco_of_tfds(folder):
    """config.data of a prepared `coco_captions/2014`, with the features of TFDS."""
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder("coco_captions/2014", data_dir=folder)  # nothing is there

    def examples(part):
        for i in range(EACH * part, EACH * (part + 1)):
            texts = [{"id": k, "text": text} for k, text in enumerate(captions(i))]
            about = {"image/filename": f"{i}.jpg", "image/id": i, "objects": []}
            yield (i, {"image": picture(i), "captions": texts, **about})

    tfds.dataset_builders.store_as_tfds_dataset(
        "coco_captions",
        str(builder.info.version),
        config="2014",
        data_dir=folder,
        split_datasets={s: list(examples(i)) for i, s in enumerate(SPLITS)},
        features=builder.info.features,
        file_format="array_record",
    )
    return {"data_dir": str(folder)}  # all else is the config's


def coco_of_tars(folder):
    """config.data of a folder that img2dataset wrote."""
    for part, _ in enumerate(SPLITS):
        with tarfile.open(folder / f"{part:05d}.tar", "w") as tar:
            for i in range(EACH * part, EACH * (part + 1)):
                image = io.BytesIO()
                Image.fromarray(picture(i)).save(image, "PNG")
                about = {"caption": captions(i)[0], "status": "success"}
                for suffix, data in (
                    ("png", image.getvalue()),
                    ("txt", captions(i)[0].encode()),
                    ("json", json.dumps(about).encode()),
                ):
                    info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        (folder / f"{part:05d}_stats.json").write_text("{}")
    return {"source": "webdataset", "path": str(folder)}


class Painter:
    """Draws noise that only the caption decides; its CLIP sees eight pixels."""

    image_size = SIZE

    def settings(self, **options):
        return {"decoder": {"guidance": options.get("decoder_guidance", 1.0)}}

    def text2image(self, prompts, **options):
        seeds = [zlib.crc32(prompt.encode()) for prompt in prompts]
        shape = (SIZE, SIZE, 3)
        draw = [np.random.default_rng(s).integers(0, 256, shape) for s in seeds]
        return np.stack(draw).astype(np.uint8)

    def fit_for_clip(self, images):
        return images

    def encode_image(self, images, progress=None):
        return images[:, 0, :8, 0] / np.float32(255)

    def encode_text(self, prompts, progress=None):
        return self.encode_image(self.text2image(prompts))


@pytest.fixture
def run(inception, tmp_path):
    """run(data, **changes) -> (results, rows of pictures.jsonl)."""

    def run(data, **changes):
        config = load(str(CONFIG))
        with config.unlocked():
            if "source" in data:
                config.data = {}
            config.data.update({**data, "image_size": SIZE})
            config.crop.size = SIZE
            config.count = COUNT
            config.extractors = {"inception": {}}
            config.metrics.kid.subset_size = 5
            config.metrics.inception_score.splits = 3
            config.update(changes)
        workdir = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        given = dict(model=Painter(), fingerprint="painter", log=len)
        results = evaluate(config, workdir, **given)
        return results, [json.loads(x) for x in (workdir / "pictures.jsonl").open()]

    return run


@pytest.mark.parametrize("make", [coco_of_tfds, coco_of_tars])
def test_the_protocol_reads_coco(make, run, tmp_path):
    folder = tmp_path / "coco"
    folder.mkdir()
    data = make(folder)
    results, rows = run(data)
    everything = EACH * len(SPLITS)
    about = results["provenance"]
    assert about["n"] == COUNT and about["reference"]["n"] == everything
    assert about["reference"]["crop"] == "shorter_side"
    assert about["reference"]["size"] == SIZE
    assert about["config"]["generation"]["decoder_guidance"] == 1.25
    names = {name.partition("/")[0] for name in results["scores"]}
    assert names == set(about["config"]["metrics"])
    assert results["scores"]["fid"]["value"] > 0
    # one caption of each picture, the first; from all three splits' pictures
    found = [row["caption"] for row in rows]
    assert len(set(found)) == COUNT
    first = {captions(i)[0] for i in range(everything)}
    assert set(found) <= first
    # the list is fixed: another run has the same, another seed another
    again, other = run(data)[0], run(data, seed=1)[0]
    for key in ("captions_sha256", "indices_sha256"):
        assert again["provenance"]["captions"][key] == about["captions"][key]
        assert other["provenance"]["captions"][key] != about["captions"][key]


def test_captions_can_be_filtered(run, tmp_path, monkeypatch):
    folder = tmp_path / "coco"
    folder.mkdir()
    data = coco_of_tars(folder)
    mine = types.ModuleType("my_filters")
    mine.dogs = lambda caption: "dog" in caption
    monkeypatch.setitem(sys.modules, "my_filters", mine)
    results, rows = run(data, caption_filter="my_filters:dogs")
    assert len(rows) == COUNT and all("dog" in row["caption"] for row in rows)
    about = results["provenance"]
    assert about["config"]["caption_filter"] == "my_filters:dogs"
    assert about["reference"]["n"] == EACH * len(SPLITS)  # real pictures: all of them
    with pytest.raises(ValueError, match="13 examples, but the source has only 12"):
        run(data, caption_filter="my_filters:dogs", count=13)
