"""Sources become records with the CLIP's own numbers, whatever interrupts."""

import hashlib
import io
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from tests.embedding.conftest import CONFIG
from unclip_jax import config as config_lib
from unclip_jax.data import order
from unclip_jax.data.loader import open_data
from unclip_jax.data.records import RecordReader, encode_image
from unclip_jax.data.sources import BadRecord, LeftOut
from unclip_jax.embedding import runner
from unclip_jax.embedding.config import read_config
from unclip_jax.embedding.frozen_clip import FrozenCLIP
from unclip_jax.images import fit
from unclip_jax.interop import components, native
from unclip_jax.tokenizer import train_tokenizer


class Pictures:
    """Twenty random pictures; some cannot be read, and reading may be cut short."""

    fingerprint = "pictures"

    def __init__(self, size=8, bad=(), stop_at=None):
        self.size, self.bad, self.stop_at = size, bad, stop_at
        self.read = []

    def __len__(self):
        return 20

    def __getitem__(self, i):
        if i == self.stop_at:
            raise KeyboardInterrupt
        if i in self.bad:
            raise BadRecord(f"p{i}", "it is torn")
        self.read.append(i)
        rng = np.random.default_rng(i)
        image = rng.integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        return {"key": f"p{i}", "caption": f"picture {i}", "image": image, "more": 1}

    def captions(self, n):
        return [f"picture {i}" for i in range(n)]


def digest(folder):
    files = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.suffix != ".npz"  # zip files hold the time
    }


def test_records_hold_what_clip_says(tmp_path, clip, params):
    source = Pictures()
    manifest = runner.embed_source(source, tmp_path / "r", clip, shard_size=9)
    reader = RecordReader(tmp_path / "r")
    assert len(reader) == 20 and len(manifest["shards"]) == 3
    assert manifest["clip_fingerprint"] == native.clip_fingerprint(CONFIG, params)
    assert manifest["skipped"] == []
    images = np.stack([source[i]["image"] for i in range(20)])
    tokens = clip.tokenizer.encode(source.captions(20))
    apply = jax.jit(clip.part.module.apply)
    expected = apply({"params": params}, images, tokens)
    for i in range(20):
        record = reader[i]
        assert record["key"] == f"p{i}" and record["caption"] == f"picture {i}"
        np.testing.assert_array_equal(record["image"], images[i])
        np.testing.assert_array_equal(record["tokens"], tokens[i])
        np.testing.assert_allclose(record["clip_image"], expected[0][i], atol=1e-5)
        np.testing.assert_allclose(record["clip_text"], expected[1][i], atol=1e-5)
    np.testing.assert_allclose(
        reader.statistics["mean"], np.mean(expected[0], 0), atol=1e-5
    )
    np.testing.assert_allclose(
        reader.statistics["cov"], np.cov(np.asarray(expected[0]).T), atol=1e-4
    )


def test_all_devices_share_a_batch(clip):
    assert clip.batch_size == 8  # 4, rounded up to the eight devices
    tokens = clip.tokenizer.encode(["a"])
    made = clip.embed(np.zeros((1, 8, 8, 3), np.uint8), tokens)
    assert all(len(a.sharding.device_set) == 8 for a in made.values())


@pytest.mark.slow
def test_text_states_are_kept_with_those_of_the_empty_caption(tmp_path, clip, params):
    full = FrozenCLIP(clip.part, clip.tokenizer, 4, text_states=True)
    runner.embed_source(Pictures(), tmp_path / "r", full, shard_size=20)
    data = open_data({"source": "records", "path": tmp_path / "r", "feed": "arrays"})
    captions = [f"picture {i}" for i in range(3)] + [""]
    tokens = clip.tokenizer.encode(captions)
    module = clip.part.module
    states = module.apply({"params": params}, tokens, method="text_states")
    text = module.apply({"params": params}, tokens, method="encode_text")
    assert data.shapes["text_states"] == ((6, 8), "float16")
    found = data.take(3, ["text_states"])["text_states"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, states[:3], atol=2e-3)  # half precision
    assert data.spec.text_width == 8
    empty = data.spec.empty_text_states, data.spec.empty_clip_text
    np.testing.assert_allclose(empty[0], states[3], atol=2e-3)
    np.testing.assert_allclose(empty[1], text[3], atol=1e-5)


def test_unreadable_examples_are_left_out_and_named(tmp_path, clip, capsys):
    source = Pictures(bad=(0, 3, 12, 13, 14, 15, 19))
    manifest = runner.embed_source(source, tmp_path, clip, shard_size=4)
    reader = RecordReader(tmp_path)
    keys = [reader[i]["key"] for i in range(len(reader))]
    assert keys == [f"p{i}" for i in range(20) if i not in source.bad]
    assert [bad["key"] for bad in manifest["skipped"]] == [f"p{i}" for i in source.bad]
    said = capsys.readouterr()
    assert "13 records in 4 shards, 7 unreadable examples left out: p0 (it is" in (
        said.out
    )
    assert "and 2 more" in said.out
    assert "20/20 examples" in said.err


def test_interrupted_then_continued_equals_unbroken(tmp_path, clip):
    whole = tmp_path / "whole"
    runner.embed_source(Pictures(bad=(5,)), whole, clip, shard_size=6)
    folder = tmp_path / "broken"
    for stop in (2, 9, 15):
        with pytest.raises(KeyboardInterrupt):
            source = Pictures(bad=(5,), stop_at=stop)
            runner.embed_source(source, folder, clip, shard_size=6)
        with pytest.raises(FileNotFoundError, match="unfinished"):
            RecordReader(folder)
    last = Pictures(bad=(5,))
    runner.embed_source(last, folder, clip, shard_size=6)
    assert set(last.read) <= {0, *range(12, 20)}  # two shards were there already
    assert digest(folder) == digest(whole)
    # once more: nothing to do, nothing changes
    again = Pictures(bad=(5,))
    runner.embed_source(again, folder, clip, shard_size=6)
    assert again.read == [0] and digest(folder) == digest(whole)


def test_records_of_another_clip_are_not_continued(tmp_path, clip, tokenizer, params):
    runner.embed_source(Pictures(), tmp_path, clip, shard_size=20)
    before = digest(tmp_path)
    other = {**params, "logit_scale": params["logit_scale"] + 1}
    part = components.build_component("clip", CONFIG, other, {}, where="other clip")
    with pytest.raises(FileExistsError, match="clip_fingerprint"):
        another = FrozenCLIP(part, tokenizer[0], batch_size=8)
        runner.embed_source(Pictures(), tmp_path, another, shard_size=20)
    assert digest(tmp_path) == before


def test_images_of_another_size_are_scaled_for_clip(tmp_path, clip):
    runner.embed_source(Pictures(size=16), tmp_path, clip, shard_size=20)
    reader = RecordReader(tmp_path)
    image = reader[3]["image"]
    assert image.shape == (16, 16, 3)  # stored as they came
    tokens = clip.tokenizer.encode(["picture 3"])
    expected = clip.embed(fit(image, 8)[None], tokens)["clip_image"]
    np.testing.assert_allclose(reader[3]["clip_image"], expected[0], atol=1e-4)


def test_jpeg(tmp_path, clip):
    manifest = runner.embed_source(
        Pictures(), tmp_path, clip, shard_size=20, image_format="jpeg"
    )
    assert manifest["extra"]["image_format"] == "jpeg"
    image = RecordReader(tmp_path)[0]["image"]
    assert image.shape == (8, 8, 3) and (image != Pictures()[0]["image"]).any()


def test_jpegs_keep_the_chroma_of_every_pixel():
    """4:4:4: one red pixel in four stays red; 4:2:0 would spread it over all four."""
    image = np.full((64, 64, 3), 128, np.uint8)
    image[::2, ::2] = (208, 96, 96)  # of about the same luma
    data = encode_image(image, "jpeg")
    stored = Image.open(io.BytesIO(data))
    assert [sampling for _, *sampling, _ in stored.layer] == [[1, 1]] * 3

    def psnr(other):
        error = np.asarray(other.convert("RGB"), np.float64) - image
        return 10 * np.log10(255**2 / np.mean(error**2))

    subsampled = io.BytesIO()
    Image.fromarray(image).save(subsampled, "JPEG", quality=95)
    assert psnr(stored) > 35 > 25 > psnr(Image.open(subsampled))


def test_records_may_hold_smaller_pictures_than_clip_sees(tmp_path, clip):
    source = Pictures()
    sizes = dict(shard_size=20, image_size=4)
    manifest = runner.embed_source(source, tmp_path, clip, **sizes)
    assert manifest["image_size"] == 4
    reader = RecordReader(tmp_path)
    for i in (0, 7):
        image = source[i]["image"]
        shrunk = Image.fromarray(image).resize((4, 4), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(reader[i]["image"], shrunk, atol=1)
        tokens = clip.tokenizer.encode([f"picture {i}"])
        seen = clip.embed(image[None], tokens)["clip_image"]
        np.testing.assert_allclose(reader[i]["clip_image"], seen[0], atol=1e-5)


def config(**changes):
    values = {
        "clip": "exports/tiny",
        "data": {"source": "icons", "image_size": 8, "nouns": 4, "split": "train"},
        "splits": {
            "train": {"split": "train", "num_examples": 12},
            "validation": {"split": "validation", "num_examples": 5},
        },
        "batch_size": 8,
        "shard_size": 10,
        "image_format": "png",
        "compute_dtype": "float32",
    }
    return read_config({**values, **changes})


def load_run(tokenizer, params, part="clip"):
    def load(folder):
        return params, {
            "step": 1,
            "config": {},
            "export": {"part": part, "config": CONFIG},
            "data_info": {"tokenizer_folder": str(tokenizer[1])},
        }

    return load


def test_embed_from_a_run_and_from_its_export(tmp_path, tokenizer, params):
    from_run = runner.embed(
        config(clip="runs/tiny"), tmp_path / "a", load_run(tokenizer, params)
    )
    assert from_run["train"]["num_records"] == 12
    assert from_run["validation"]["num_records"] == 5
    native.write_part(tmp_path / "e", "clip", CONFIG, params, {})
    native.write_tokenizer(tmp_path / "e", tokenizer[1])
    chosen = config(clip=str(tmp_path / "e"))
    from_export = runner.embed(chosen, tmp_path / "b", load_run=None)
    assert from_export == from_run
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shard_sise": 3}, "unknown key 'shard_sise' in config: did you mean 'shard"),
        ({"image_format": "gif"}, "config.image_format 'gif'"),
        ({"image_size": -1}, "config.image_size must be at least 0, got -1"),
        ({"shard_size": 0}, "config.shard_size must be at least 1"),
        ({"batch_size": 0}, "config.batch_size must be at least 1"),
        ({"splits": {}}, "config.splits is empty"),
        ({"splits": {"train": {"sise": 3}}}, "unknown key 'sise' in config.data"),
        ({"data": {"source": "icon"}}, "config.data.source 'icon'"),
        ({"compute_dtype": "float8"}, "dtype 'float8'"),
    ],
)
def test_mistakes(tmp_path, tokenizer, params, changes, message):
    with pytest.raises(ValueError, match=message):
        runner.embed(config(**changes), tmp_path / "x", load_run(tokenizer, params))
    assert not (tmp_path / "x").exists()


def test_random_squares_are_refused(tmp_path):
    """Records hold one square of each image, so no other could be drawn later."""
    Image.new("RGB", (12, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("an image")
    data = {"source": "folder", "path": str(tmp_path), "image_size": 8}
    with pytest.raises(
        ValueError, match="crop 'random' of split 'train': records hold"
    ):
        splits = {"train": {"crop": "random"}}
        runner.embed(config(data=data, splits=splits), tmp_path / "x", load_run=None)
    assert not (tmp_path / "x").exists()


def test_a_run_of_another_stage(tmp_path, tokenizer, params):
    load = load_run(tokenizer, params, part="prior")
    with pytest.raises(ValueError, match="is a run of stage 'prior'"):
        runner.embed(config(), tmp_path / "x", load)
    with pytest.raises(ValueError, match="config lacks 'clip', 'splits'"):
        read_config({"data": {"source": "icons"}})


def test_a_tokenizer_of_another_clip(tmp_path, params):
    other = train_tokenizer(["a cat"] * 3, tmp_path / "t", 520, context_length=6)
    part = components.build_component("clip", CONFIG, params, {}, where="tiny clip")
    with pytest.raises(ValueError, match="do not belong together"):
        FrozenCLIP(part, other, batch_size=8)


@pytest.mark.parametrize("name", ["icons", "emoji", "paper"])
def test_the_configs_can_be_used(name):
    file = pathlib.Path(__file__).parents[2] / f"configs/{name}/embed.py"
    chosen = read_config(config_lib.load(file))
    assert set(chosen.splits) == {"train", "validation"}


class Several(Pictures):
    """Pictures with one to four captions; every fifth is not wanted."""

    def captions_of(self, i):
        return tuple(f"{word} {i}" for word in ("a", "be", "cat", "dog")[: 1 + i % 4])

    def __getitem__(self, i):
        if i % 5 == 4:
            raise LeftOut(f"p{i}", "too small")
        captions = self.captions_of(i)
        return {**super().__getitem__(i), "caption": captions[0], "captions": captions}


@pytest.mark.parametrize("feed", ["tf", "arrays"])
def test_all_captions_are_kept_and_read_in_turn(tmp_path, clip, params, feed):
    manifest = runner.embed_source(Several(), tmp_path / "r", clip, shard_size=20)
    assert manifest["left_out"] == {"too small": 4} and manifest["skipped"] == []
    data = open_data({"source": "records", "path": tmp_path / "r", "feed": feed})
    wanted = [Several().captions_of(i) for i in range(20) if i % 5 != 4]
    assert len(data) == 16 and data.captions(16) == [c for w in wanted for c in w]
    apply = jax.jit(clip.part.module.apply, static_argnames="method")
    tokens = clip.tokenizer.encode(data.captions(16))
    text = apply({"params": params}, tokens, method="encode_text")
    text = dict(zip(map(bytes, tokens), np.asarray(text), strict=True))
    seen = {i: [] for i in range(16)}
    batches = data.batches(["tokens", "clip_text"], 0, 16)
    for step in range(8):  # epochs
        batch = next(batches)
        for row, i in enumerate(order.batch_indices(0, step, 16, 16)):
            token = bytes(batch["tokens"][row])
            np.testing.assert_allclose(batch["clip_text"][row], text[token], atol=1e-5)
            seen[int(i)].append(token)
    begins = set()
    for i, found in seen.items():
        count = len(wanted[i])
        choices = [bytes(t) for t in clip.tokenizer.encode(list(wanted[i]))]
        turns = [choices.index(token) for token in found]
        assert turns == [(turns[0] + k) % count for k in range(8)]
        begins.add((count, turns[0]))
    assert len([1 for count, _ in begins if count == 4]) > 1  # not all the first


def test_dissimilar_captions_are_left_out_and_counted(tmp_path, clip):
    whole = tmp_path / "whole"
    runner.embed_source(Several(), whole, clip, shard_size=20)
    reader = RecordReader(whole)
    cosines = {}
    for i in range(len(reader)):
        found = reader.read_batch([i], ["clip_image", "clip_text"])[0]
        image, text = found["clip_image"], found["clip_text"]
        norms = np.linalg.norm(image) * np.linalg.norm(text, axis=1)
        example = reader[i]
        captions = example.get("captions", [example["caption"]])
        cosines[example["key"]] = dict(zip(captions, text @ image / norms, strict=True))
    least = float(np.median([c for row in cosines.values() for c in row.values()]))
    kept = {
        key: good
        for key, row in cosines.items()
        if (good := [caption for caption, c in row.items() if c >= least])
    }
    some = tmp_path / "some"
    manifest = runner.embed_source(
        Several(), some, clip, shard_size=20, min_similarity=least
    )
    reader = RecordReader(some)
    assert {
        (e := reader[i])["key"]: list(e.get("captions", [e["caption"]]))
        for i in range(len(reader))
    } == kept
    (reason,) = set(manifest["left_out"]) - {"too small"}
    assert reason == f"a CLIP similarity below min_similarity {least:g}"
    assert manifest["left_out"][reason] == 16 - len(kept) > 0
    with pytest.raises(FileExistsError, match="made otherwise"):
        runner.embed_source(Several(), some, clip, shard_size=20, min_similarity=0.9)
