"""Sets of pictures: folders, npz files, sources, crops."""

import time

import numpy as np
import pytest
from PIL import Image

from unclip_jax.evaluation import image_sets
from unclip_jax.evaluation.features.store import FeatureStore
from unclip_jax.evaluation.image_sets import ArrayImages, FolderImages, open_images
from unclip_jax.evaluation.metrics import frechet


def picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    for i, (h, w) in enumerate([(8, 8), (8, 8), (8, 12)]):
        Image.fromarray(picture(i, h, w)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_is_read_in_order(folder):
    images = FolderImages(folder)
    assert len(images) == 3
    np.testing.assert_array_equal(images[1:2][0], picture(1, 8, 8))
    assert images[2:2].shape[0] == 0
    problem = "differ in size: .*0.png has 8x8 pixels, .*2.png 12x8.*shorter_side"
    with pytest.raises(ValueError, match=problem):
        images[:]
    before = images.fingerprint
    Image.fromarray(picture(9, 8, 8)).save(folder / "1.png")
    assert FolderImages(folder).fingerprint != before


def test_crops(folder):
    cut = FolderImages(folder, "shorter_side", 8)[:]
    np.testing.assert_array_equal(cut[2], picture(2, 8, 12)[:, 2:10])
    square = FolderImages(folder, "square_lanczos", 4)
    want = Image.fromarray(picture(2, 8, 12)[:, 2:10])
    want = want.resize((4, 4), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(square[2:3][0], want)
    # 20 x 30 to a shorter side of 10: 10 x 15, whose middle 10 columns stay
    array = ArrayImages(picture(5, 20, 30)[None], "shorter_side", 10)
    want = Image.fromarray(picture(5, 20, 30)).resize((15, 10), 3).crop((2, 0, 12, 10))
    np.testing.assert_array_equal(array[:][0], want)
    fingerprints = {FolderImages(folder, c, 4).fingerprint for c in image_sets.CROPS}
    assert len(fingerprints) == 3


def test_refusals(folder, tmp_path):
    with pytest.raises(ValueError, match="expected one of"):
        FolderImages(folder, "centre", 4)
    with pytest.raises(ValueError, match="needs the size"):
        FolderImages(folder, "shorter_side")
    with pytest.raises(FileNotFoundError, match="not there"):
        open_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image"):
        open_images(tmp_path / "empty")
    (folder / "3.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="3.png. is not a readable image"):
        FolderImages(folder)[3:]
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match="uint8"):
        open_images(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", mu=np.zeros(3))
    with pytest.raises(ValueError, match="neither"):
        open_images(tmp_path / "a.npz")


def test_folders_below_are_counted_and_told(folder):
    assert FolderImages(folder).notes == ()
    (folder / "below").mkdir()
    for name in ("a.png", "b.jpg", "grid.png"):
        Image.fromarray(picture(0, 8, 8)).save(folder / "below" / name)
    images = FolderImages(folder)
    assert len(images) == 3
    assert images.notes == (f"2 images in folders below {folder} are not counted",)


def test_few_large_images_are_in_memory_at_a_time(monkeypatch):
    class Extractor:
        about, calls = {}, []

        def image(self, images):
            self.calls.append(len(images))
            return {"": images.reshape(len(images), -1)[:, :5].astype(float)}

    images = ArrayImages(picture(0, 20 * 8, 8).reshape(20, 8, 8, 3))
    whole = FeatureStore(chunk=9).features(images, Extractor())[""]
    monkeypatch.setattr(image_sets, "READ_BYTES", 4 * 8 * 8 * 3)
    extractor = Extractor()
    extractor.calls = []
    parts = FeatureStore(chunk=9).features(images, extractor)[""]
    assert extractor.calls == [4, 4, 1, 4, 4, 1, 2]
    np.testing.assert_array_equal(parts, whole)
    assert parts.dtype == np.float32


def test_slow_reading_changes_no_digit():
    """Pictures that come late and out of order, in other chunks, score the same."""

    class Slow(ArrayImages):
        def __getitem__(self, rows):
            return image_sets.Images.__getitem__(self, rows)  # one by one, in threads

        def _image(self, i):
            time.sleep(0.005 * (i * 7 % 5))
            return super()._image(i)

    class Extractor:
        about = {}

        def image(self, images):
            x = images.reshape(len(images), -1) / 255.0
            return {"": np.sin(np.cumsum(x, axis=1))}

    images = np.random.default_rng(0).integers(0, 256, (21, 4, 4, 3), np.uint8)
    fast = FeatureStore(chunk=21).features(ArrayImages(images), Extractor())[""]
    slow = FeatureStore(chunk=8).features(Slow(images), Extractor())[""]
    np.testing.assert_array_equal(slow, fast)
    distance = frechet.frechet_from_features
    assert distance(slow[:9], slow[9:]) == distance(fast[:9], fast[9:])


def test_a_nan_picture_is_named(tmp_path):
    class Extractor:
        about = {}

        def image(self, images):
            x = images.reshape(len(images), -1).astype(float)
            return {"": np.where(x[:, :1] == 7, np.nan, x)}

    images = np.zeros((9, 2, 2, 3), np.uint8)
    images[5] = 7
    with pytest.raises(ValueError, match="image 5 are NaN"):
        FeatureStore(tmp_path, chunk=4).features(ArrayImages(images), Extractor())


def test_a_source_is_cropped_from_its_files(folder):
    from unclip_jax.data.sources import make_source
    from unclip_jax.evaluation import inputs

    for i in range(3):
        (folder / f"{i}.txt").write_text(f"picture {i}")
    options = {"source": "folder", "path": str(folder), "image_size": 4}
    source = make_source(options)
    numbers = np.array([2, 0])
    plain = image_sets.SourceImages(source, numbers)
    assert plain[:].shape == (2, 4, 4, 3)
    wide = image_sets.SourceImages(source, numbers, "shorter_side", 8)
    np.testing.assert_array_equal(wide[:1][0], picture(2, 8, 12)[:, 2:10])
    assert wide.first(1).fingerprint != wide.fingerprint
    assert inputs.describe(source, 2)["caption"] == "picture 2"
