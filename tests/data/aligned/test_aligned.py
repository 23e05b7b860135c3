"""Aligned arrays: what goes in comes out, by row or by key; bad input is named."""

import io
import pathlib
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from unclip_jax.data import loader
from unclip_jax.data.aligned import alignment, inspection, reader, writer
from unclip_jax.data.aligned.config import read_config
from unclip_jax.data.aligned.reader import AlignedArrays
from unclip_jax.data.aligned.tables import open_table
from unclip_jax.errors import UsageError

RNG = np.random.default_rng(0)
N, ALL = 40, {"train": 1.0}


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(name, array):
    np.save(name, array)
    return name


def make(target, splits=ALL, **conditions):
    """The alignment of arrays, and the folder that it is written to."""
    options = {"target": target, "conditions": conditions, "splits": splits}
    config = read_config(options)
    aligned = alignment.align(config)
    writer.write(config, aligned, "out", say=lambda line: None)
    return aligned


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_rows_come_back_in_order_and_in_their_types():
    target, voxels = floats(N, 5), floats(N, 7).astype(np.float16)
    states, ids = RNG.standard_normal((N, 3, 4)), RNG.integers(0, 9, (N, 6))
    classes = RNG.integers(0, 4, N)
    np.savez("c.npz", states=states, classes=classes)
    table = pyarrow.table({"ids": list(ids)})
    pyarrow.parquet.write_table(table, "c.parquet")
    make(
        {"path": save("t.npy", target)},
        voxels={"path": save("v.npy", voxels)},
        states={"path": "c.npz:states"},
        ids={"path": "c.parquet"},
        label={"path": "c.npz:classes", "size": 10},
    )
    data = loader.open_data(
        {"source": "aligned", "path": "out/train", "feed": "arrays"}
    )
    assert len(data) == N
    batch = data.take(N, ["target", "voxels", "states", "ids", "label"])
    np.testing.assert_array_equal(batch["target"], target)
    np.testing.assert_array_equal(batch["voxels"], voxels)
    assert batch["voxels"].dtype == np.float16
    np.testing.assert_array_equal(batch["states"], states.astype(np.float32))
    np.testing.assert_array_equal(batch["ids"], ids)
    np.testing.assert_array_equal(batch["label"], classes)
    conditions = data.spec.conditions
    kinds = {name: c["kind"] for name, c in conditions.items()}
    assert kinds == {
        "voxels": "vector",
        "states": "sequence",
        "ids": "tokens",
        "label": "class",
    }
    assert conditions["label"]["size"] == 10
    assert conditions["ids"]["size"] == ids.max() + 1
    np.testing.assert_allclose(data.spec.embedding_mean, target.mean(0, "f8"), 1e-9)
    np.testing.assert_allclose(data.spec.embedding_std, target.std(0, "f8"), 1e-9)
    own = data.spec.condition_statistics()["states"]
    flat = states.astype(np.float32).reshape(-1, 4)
    np.testing.assert_allclose(own["std"], flat.std(0, "f8"), 1e-9)
    one = AlignedArrays("out/train")[3]
    assert one["key"] == "3"
    np.testing.assert_array_equal(one["ids"], ids[3])


def test_statistics_in_parts_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(alignment, "CHUNK_BYTES", 3 * 20)  # three rows at a time
    target = floats(N, 5) + 1000
    make({"path": save("t.npy", target)}, c={"path": save("c.npy", floats(N, 2))})
    found = AlignedArrays("out/train")
    np.testing.assert_array_equal(found.read("target"), target)
    np.testing.assert_allclose(found.statistics["std"], target.std(0, "f8"), 1e-8)
    norms = np.linalg.norm(target.astype("f8"), axis=1)
    np.testing.assert_allclose(found.statistics["mean_norm"], norms.mean(), 1e-12)


def test_keys_align_what_is_in_another_order():
    target, other = floats(N, 3), floats(N + 5, 2)
    order = RNG.permutation(N + 5)
    np.save("keys.npy", np.array([f"k{i}" for i in range(N)]))
    np.save("others.npy", np.array([f"k{i}" for i in order]))
    aligned = make(
        {"path": save("t.npy", target), "keys": "keys.npy"},
        c={"path": save("c.npy", other[order]), "keys": "others.npy"},
    )
    found = AlignedArrays("out/train")
    np.testing.assert_array_equal(found.read("c"), other[:N])
    assert found.keys[:2].tolist() == ["k0", "k1"]
    assert aligned.columns[1].unused == 5


@pytest.mark.parametrize("kind", ("array_record", "tfrecord"))
def test_fields_of_tfds_are_arrays_by_row_or_key(kind, tmp_path):
    """TFDS shuffles what it stores; targets and conditions are paired all the same."""
    tfds = pytest.importorskip("tensorflow_datasets")
    target, voxels = floats(N, 2, 3), floats(N, 4).astype(np.float16)
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(2, 2, 3)),
            "scan": {"voxels": tfds.features.Tensor(shape=(4,), dtype=np.float16)},
            "tokens": tfds.features.Tensor(shape=(2, 3), dtype=np.float32),
            "label": tfds.features.ClassLabel(num_classes=3),
            "ragged": tfds.features.Sequence(np.int64),
        }
    )
    examples = [
        {
            "id": f"é{i}",
            "image": np.zeros((2, 2, 3), np.uint8),
            "scan": {"voxels": voxels[i]},
            "tokens": target[i],
            "label": i % 3,
            "ragged": [1] * (1 + i % 2),
        }
        for i in range(N)
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        "scans",
        "1.0.0",
        data_dir=tmp_path,
        split_datasets={"train": list(enumerate(examples))},
        features=features,
        file_format=kind,
        disable_shuffling=False,
    )
    folder = tmp_path / "scans/1.0.0"
    order = RNG.permutation(N)
    np.save("keys.npy", np.array([f"é{i}" for i in order]))
    make(
        {"path": f"{folder}:train/tokens", "keys": f"{folder}:train/id"},
        voxels={"path": f"{folder}:train/scan/voxels"},
        label={"path": f"{folder}:train/label"},
        other={"path": save("o.npy", voxels[order]), "keys": "keys.npy"},
    )
    found = AlignedArrays("out/train")
    rows = [int(key[1:]) for key in found.keys]
    assert sorted(rows) == [*range(N)]
    np.testing.assert_array_equal(found.read("target"), target[rows])
    np.testing.assert_array_equal(found.read("voxels"), voxels[rows])
    np.testing.assert_array_equal(found.read("other"), voxels[rows])
    np.testing.assert_array_equal(found.read("label"), np.array(rows) % 3)
    for name, message in (
        ("train/voxels", "no 'train/voxels'; name a field of a split, as .*/FIELD; it"),
        ("test/tokens", "splits train and the fields .*tokens"),
        ("train/ragged", r"rows of other shapes: \(1,\), \(2,\)"),
    ):
        with pytest.raises(UsageError, match=message):
            open_table(f"{folder}:{name}", "config.target")


def test_what_is_missing_is_masked_or_left_out():
    target, c = floats(N, 3), floats(N, 2)
    c[4], target[7] = np.nan, np.inf
    path = {"path": save("c.npy", c)}
    where = {"path": save("t.npy", target)}
    aligned = make(where, c=path)
    assert aligned.left_out == {
        "target is not finite or empty": 1,
        "c is not finite or empty": 1,
    }
    assert len(AlignedArrays("out/train")) == N - 2
    config = {"target": where, "conditions": {"c": path | {"missing": True}}}
    config = read_config(config | {"splits": ALL})
    aligned = alignment.align(config)
    writer.write(config, aligned, "masked", say=lambda line: None)
    found = AlignedArrays("masked/train")
    assert len(found) == N - 1 and found.manifest["missing"] == {"c": 1}
    assert found.about_target()["absent_conditions"] == ()
    mask = found.read("c_mask")
    assert mask.sum() == N - 2 and not mask[4]
    np.testing.assert_array_equal(found.read("c")[4], 0)
    present = np.delete(c, [4, 7], 0).astype("f8")
    np.testing.assert_allclose(found.statistics["c/mean"], present.mean(0), 1e-9)


def test_masks_of_sequences_and_repeats():
    x, mask = floats(N, 3, 2), RNG.random((N, 3)) < 0.5
    mask[:, 0], mask[5] = True, False  # the sixth has nothing
    x[0, 2], mask[0, 2] = np.nan, False
    path = {"path": save("x.npy", x), "mask": save("m.npy", mask)}
    make(
        {"path": save("t.npy", floats(N, 4, 3))},
        states=path,
        scans=path | {"repeats": True},
    )
    found = AlignedArrays("out/train")
    rest = np.delete(np.arange(N), 5)
    assert found.manifest["left_out"]["states is not finite or empty"] == 1
    for name in ("states", "scans"):
        np.testing.assert_array_equal(found.read(f"{name}_mask"), mask[rest])
        assert np.isfinite(found.read(name)).all()
    assert found.arrays["target"][1] == (4, 3)
    own = x[rest][mask[rest]].astype("f8")
    np.testing.assert_allclose(found.statistics["states/mean"], own.mean(0), 1e-8)


def test_splits_keep_groups_together_and_do_not_move():
    groups = np.array([f"subject {i % 10}" for i in range(N)])
    np.save("g.npy", groups)
    options = {
        "target": {"path": save("t.npy", floats(N, 2))},
        "conditions": {"c": {"path": save("c.npy", floats(N, 2))}},
        "splits": {"train": 0.6, "validation": 0.4},
        "groups": "g.npy",
    }
    splits = alignment.align(read_config(options)).splits
    names = {name: set(groups[rows]) for name, rows in splits.items()}
    assert not names["train"] & names["validation"]
    assert sum(map(len, splits.values())) == N
    more = np.append(groups, ["subject 0", "another"])
    np.save("g.npy", more)
    save("t.npy", floats(N + 2, 2)), save("c.npy", floats(N + 2, 2))
    again = alignment.align(read_config(options)).splits
    for name, rows in splits.items():
        assert set(rows) <= set(again[name])
    np.save("s.npy", np.where(np.arange(N + 2) < 9, "train", "other"))
    named = alignment.align(read_config(options | {"split_names": "s.npy"})).splits
    assert {k: len(v) for k, v in named.items()} == {"train": 9, "other": N - 7}


def test_the_same_command_again_does_nothing_and_another_is_refused():
    target = {"path": save("t.npy", floats(N, 2))}
    make(target, c={"path": save("c.npy", floats(N, 2))})
    before = AlignedArrays("out/train").fingerprint
    make(target, c={"path": "c.npy"})
    assert AlignedArrays("out/train").fingerprint == before
    with pytest.raises(FileExistsError, match="another config"):
        make(target, d={"path": "c.npy"})


def test_an_array_replaced_by_another_of_its_shape_is_refused(monkeypatch):
    make({"path": save("t.npy", floats(N, 2))}, c={"path": save("c.npy", floats(N, 3))})
    stored = np.load("out/train/c.npy")
    np.save("out/train/c.npy", stored[::-1])  # the same numbers, in another order
    with pytest.raises(UsageError, match="c.npy holds other numbers than were written"):
        AlignedArrays("out/train")
    monkeypatch.setattr(reader, "LIMIT", 8)
    with pytest.warns(UserWarning, match="is not compared to its hash"):
        AlignedArrays("out/train")


def test_a_report_names_what_is_odd():
    target = floats(N, 4)
    target[:, 2], target[1], target[3] = 7, np.nan, target[2]
    c = floats(N, 2)
    c[5] = 0
    aligned = make({"path": save("t.npy", target)}, c={"path": save("c.npy", c)})
    lines = []
    inspection.report(aligned, lines.append)
    text = "\n".join(lines)
    for line in (
        "target: vector, float32 (40, 4)",
        "1 rows hold NaN or infinity",
        "1 rows are there more than once",
        "1 of 4 dimensions are constant",
        "1 norms are 0",
        "39 of 40 examples are used",
        "left out: 1, target is not finite or empty",
    ):
        assert line in text, text


def keyed(name, keys, *shape):
    np.save(f"{name}_keys.npy", np.array(keys))
    return {"path": save(f"{name}.npy", floats(*shape)), "keys": f"{name}_keys.npy"}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda: {"c": {"path": save("c.npy", floats(N - 1, 2))}}, "39 rows"),
        (lambda: {"c": {"path": save("c.npy", floats(N, 0))}}, "is empty"),
        (lambda: {"c": {"path": "none.npy"}}, "does not exist"),
        (lambda: {"c": {"path": "t.csv"}}, "expected one of .npy"),
        (lambda: {"c": {"path": save("c.npy", np.full((N, 2), np.nan))}}, "every"),
        (lambda: {"c": keyed("c", range(N), N, 2)}, "config.target has none"),
        (lambda: {"c": {"path": save("c.npy", floats(N, 2, 2, 2))}}, "expected floats"),
        (lambda: {"c": {"path": save("c.npy", np.array(["a"] * N))}}, "texts"),
        (lambda: {"c_mask": {"path": "t.npy"}}, "choose a name"),
        (lambda: {"c": {"path": save("c.npy", np.full(N, 9)), "size": 3}}, "is 9"),
        (lambda: {"c": {"path": "t.npy", "pth": ""}}, "unknown key 'pth'"),
        (lambda: {"c": {"path": "t.npy", "mask": "t.npy"}}, "sequences"),
        (lambda: {}, "name at least one"),
    ],
)
def test_bad_conditions_are_refused(change, message):
    save("t.npy", floats(N, 3))
    with pytest.raises((UsageError, FileNotFoundError), match=message):
        make({"path": "t.npy"}, **change())


@pytest.mark.parametrize(
    "target, message",
    [
        (lambda: floats(N, 0), "is empty"),
        (lambda: floats(N), "expected floats"),
        (lambda: np.zeros((N, 3), int), "expected floats"),
        (lambda: np.full((N, 3), np.nan, np.float32), "every example"),
    ],
)
def test_bad_targets_are_refused(target, message):
    save("c.npy", floats(N, 3))
    with pytest.raises(UsageError, match=message):
        make({"path": save("t.npy", target())}, c={"path": "c.npy"})


def test_keys_that_do_not_match_are_refused():
    target = keyed("t", [f"a{i}" for i in range(N)], N, 3)
    with pytest.raises(UsageError, match=r"'b0'.*'a0'"):
        make(target, c=keyed("c", [f"b{i}" for i in range(N)], N, 2))
    with pytest.raises(UsageError, match="more than once, e.g. 'a0'"):
        make(target, c=keyed("c", ["a0"] * N, N, 2))
    with pytest.raises(UsageError, match="39 keys"):
        make(target, c=keyed("c", [f"a{i}" for i in range(N - 1)], N, 2))


def test_damaged_folders_are_refused():
    make({"path": save("t.npy", floats(N, 2))}, c={"path": save("c.npy", floats(N, 2))})
    np.save("out/train/c.npy", floats(N, 3))
    with pytest.raises(UsageError, match=r"c.npy is float32 \(40, 3\)"):
        AlignedArrays("out/train")
    with open("out/train/c.npy", "r+b") as file:
        file.truncate(50)
    with pytest.raises(UsageError, match="damaged"):
        AlignedArrays("out/train")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        AlignedArrays("nowhere")


def write_tar(name, samples):
    """Shards as webdataset has them: {key: {member: array}}."""
    with tarfile.open(name, "w") as tar:
        for key, members in samples.items():
            for member, array in members.items():
                data = io.BytesIO()
                np.save(data, array)
                entry = tarfile.TarInfo(f"{key}.{member}.npy")
                entry.size = data.tell()
                data.seek(0)
                tar.addfile(entry, data)


def test_hdf5_and_tars_are_tables():
    """HDF5 by rows in any order; shards by key, against the arrays that went in."""
    h5py = pytest.importorskip("h5py")
    target, voxels, keys = floats(N, 5), floats(N, 7), [f"k{i:02d}" for i in range(N)]
    order = RNG.permutation(N)
    with h5py.File("t.h5", "w") as file:
        file["clip/image"] = target[order]
        file["names"] = [keys[i] for i in order]
    rows = dict(zip(keys, voxels, strict=True))
    for shard in range(2):
        some = {k: {"voxels": rows[k], "id": np.int64(3)} for k in keys[shard::2]}
        write_tar(f"s-{shard}.tar", some)
    make(
        {"path": "t.h5:clip/image", "keys": "t.h5:names"},
        voxels={"path": "s-*.tar:voxels", "keys": "s-*.tar:__key__"},
    )
    found = AlignedArrays("out/train")
    assert found.keys.tolist() == [keys[i] for i in order]
    np.testing.assert_array_equal(found.read("target"), target[order])
    np.testing.assert_array_equal(found.read("voxels"), voxels[order])
    table = open_table("t.h5:clip/image", "")
    for some in ([3, 1, 1, 2], [39, 0], []):
        np.testing.assert_array_equal(table[np.array(some, int)], target[order][some])


def test_bad_hdf5_and_tars_are_refused():
    h5py = pytest.importorskip("h5py")
    with h5py.File("t.h5", "w") as file:
        file["a"], file["b"] = floats(2, 3), floats(2, 3)
    write_tar("s.tar", {"x": {"a": floats(3)}, "y": {"a": floats(4)}})
    (pathlib.Path("bad.h5")).write_bytes(b"nothing")
    (pathlib.Path("bad.tar")).write_bytes(b"nothing" * 100)
    for name, message in {
        "t.h5": "no array ''; name one of them, as t.h5:NAME: a, b",
        "bad.h5": "cannot be read",
        "bad.tar:a": "cannot be read",
        "s.tar:b": "no array 'b'; name one of them, as s.tar:NAME: a, __key__",
        "s.tar:a": r"rows of other shapes: 'x' \(3,\), 'y' \(4,\)",
    }.items():
        with pytest.raises(UsageError, match=message):
            open_table(name, "config.target")
    with pytest.raises(FileNotFoundError, match="no file is called"):
        open_table("none-*.tar:a", "config.target")
