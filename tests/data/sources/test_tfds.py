"""TFDS data sets by name; a tiny one is prepared here, nothing is downloaded."""

import numpy as np
import pytest

from unclip_jax.data.sources import make_source


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """data_dir of `tiny_captions` in array_record, like coco_captions, and `old`."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features
    folder = tmp_path_factory.mktemp("tfds")

    def examples():
        for i in range(6):
            texts = [{"id": k, "text": f"text {k} of {i}"} for k in range(1 + i % 3)]
            image = np.full((12, 12, 3), (10 * i, 5, 255 - 10 * i), np.uint8)
            yield (
                i,
                {
                    "image": image,
                    "image/filename": f"{i}.jpg",
                    "captions": texts,
                    "label": i % 2,
                },
            )

    for name, kind in (("tiny_captions", "array_record"), ("old", "tfrecord")):
        tfds.dataset_builders.store_as_tfds_dataset(
            name,
            "1.0.0",
            data_dir=folder,
            split_datasets={"train": list(examples())},
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "image/filename": features.Text(),
                    "captions": features.Sequence(
                        {"id": np.int64, "text": features.Text()}
                    ),
                    "label": features.ClassLabel(names=["tabby_cat", "dog"]),
                }
            ),
            file_format=kind,
        )
    return str(folder)


def source(prepared, name="tiny_captions", **options):
    options = {"data_dir": prepared, "image_size": 8, **options}
    return make_source({"source": "tfds", "name": name, **options})


def test_several_captions_and_named_fields(prepared, number_of):
    data = source(prepared, key="image/filename")
    assert len(data) == 6
    seen = set()
    for i in range(6):
        example = data[i]
        number = number_of(example["image"])
        seen.add(number)
        assert example["key"] == f"{number}.jpg"
        texts = tuple(f"text {k} of {number}" for k in range(1 + number % 3))
        assert example["captions"] == texts
    assert seen == set(range(6))
    assert sorted(data.captions())[:2] == ["text 0 of 0", "text 0 of 1"]
    assert len(data.captions()) == 12
    assert source(prepared)[2]["key"] == "train-00000002"


def test_labels_and_slices(prepared, number_of):
    options = dict(caption="label", template="picture of a {}")
    data = source(prepared, split="train[:50%]", **options)
    assert len(data) == 3
    for i in range(3):
        name = "dog" if number_of(data[i]["image"]) % 2 else "tabby cat"
        assert data[i]["caption"] == f"picture of a {name}"
    assert data.fingerprint != source(prepared, **options).fingerprint
    both = source(prepared, split="train[50%:]+train[:50%]")  # as COCO's need
    found = [number_of(both[i]["image"]) for i in range(6)]
    assert sorted(found) == list(range(6)) and found[3:] == [
        number_of(data[i]["image"]) for i in range(3)
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(split="test"), "no split 'test': train"),
        (dict(image="label"), "'label' of tiny_captions holds no images"),
        (dict(caption="captions/txt"), "no field 'captions/txt'"),
        (dict(name="old"), "at random. Prepare it with tfds.build"),
    ],
)
def test_mistakes_are_named(prepared, options, message):
    with pytest.raises(ValueError, match=message):
        source(prepared, **options)


def test_what_is_not_on_disk_is_not_fetched(prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set 'tiny_captionss'"):
        source(prepared, "tiny_captionss")
    with pytest.raises(FileNotFoundError, match="coco_captions.*download_and_prepare"):
        source(str(tmp_path), "coco_captions")
    assert not list(tmp_path.iterdir())
