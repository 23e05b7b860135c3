"""Exports edited by hand: one sentence that names the file, never a traceback."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from unclip_jax.files import sha256_file
from unclip_jax.generation.loading import load_stack
from unclip_jax.interop import native

from .conftest import random_part

DIM = 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A CLIP, a decoder and the statistics of its embeddings."""
    folder = tmp_path_factory.mktemp("whole")
    clip, decoder = random_part("clip", 0), random_part("decoder", 1)
    native.write_part(folder, "clip", clip.config, clip.params, {})
    fingerprint = native.read_index(folder)["parts"]["clip"]["clip_fingerprint"]
    meta = {"clip_fingerprint": fingerprint}
    native.write_part(folder, "decoder", decoder.config, decoder.params, meta)
    native.write_statistics(folder, np.zeros(DIM), np.eye(DIM))
    return folder


def edit(folder, name, change):
    """Writes change(content) of a JSON or safetensors file, and its new hash."""
    file = folder / name
    if file.suffix == ".json":
        changed = change(json.loads(file.read_text()))
        file.write_text(json.dumps(changed))
    else:
        changed = change(safetensors.numpy.load_file(file))
        safetensors.numpy.save_file(changed, file, {"format": native.FORMAT})
    if name != native.INDEX:
        index = json.loads((folder / native.INDEX).read_text())
        index["parts"][file.parent.name]["files"][file.name] = sha256_file(file)
        (folder / native.INDEX).write_text(json.dumps(index))


def with_(path, value):
    """A change: the value at a path of keys, or without the last of them."""

    def change(tree):
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node[key]
        if value is None:
            del node[last]
        else:
            node[last] = value
        return tree

    return change


STATISTICS = f"{native.STATISTICS}/{native.WEIGHTS}"
CASES = {
    "index: empty": (native.INDEX, lambda _: {}, "has no 'parts'"),
    "index: a list": (native.INDEX, lambda _: [], "expected settings by name"),
    "index: no parts": (native.INDEX, with_("parts", {}), "lists no parts"),
    "index: no files": (native.INDEX, with_("parts/clip/files", None), "no 'files'"),
    "index: a number as hash": (
        native.INDEX,
        with_("parts/clip/files/config.json", 3),
        "a hash of the clip is not a text",
    ),
    "index: a list as fingerprint": (
        native.INDEX,
        with_("parts/decoder/clip_fingerprint", ["a"]),
        "a hash of the decoder is not a text",
    ),
    "config: empty": ("decoder/config.json", lambda _: {}, "has no 'config'"),
    "config: a list": (
        "decoder/config.json",
        lambda _: [1],
        "expected settings by name",
    ),
    "config: no model": (
        "decoder/config.json",
        with_("config/model", None),
        "no fields of a model",
    ),
    "config: a list as fingerprint": (
        "decoder/config.json",
        with_("meta/clip_fingerprint", ["a"]),
        r"clip_fingerprint is \['a'\], no hash",
    ),
    "config: no space of embeddings": (
        "decoder/config.json",
        with_("config/embedding", None),
        "None of 'embedding'",
    ),
    "config: a field nobody knows": (
        "decoder/config.json",
        with_("config/model/wings", 2),
        "wings",
    ),
    "statistics: integers": (
        STATISTICS,
        with_("mean", np.zeros(DIM, np.int64)),
        "mean is int64.*expected finite floats",
    ),
    "statistics: booleans": (
        STATISTICS,
        with_("cov", np.eye(DIM, dtype=bool)),
        "cov is bool",
    ),
    "statistics: NaN": (STATISTICS, with_("mean", np.full(DIM, np.nan)), "mean is"),
    "statistics: too wide": (STATISTICS, with_("mean", np.zeros(DIM + 1)), "mean is"),
    "statistics: none": (STATISTICS, with_("cov", None), "cov is missing"),
    "statistics: unit a number": (
        STATISTICS,
        with_("unit", np.ones((), np.int32)),
        "unit is int32.*expected booleans",
    ),
    "statistics: more": (STATISTICS, with_("median", np.zeros(DIM)), "has median"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_names_the_file(whole, tmp_path, case):
    name, change, problem = CASES[case]
    folder = tmp_path / "export"
    shutil.copytree(whole, folder)
    edit(folder, name, change)
    with pytest.raises(ValueError, match=problem) as error:
        load_stack(folder)
    assert name.split("/")[0] in str(error.value), "the message names no file"
    assert "\n" not in str(error.value)


def test_what_is_not_edited_loads(whole):
    stack = load_stack(whole)
    assert {*stack.parts} == {"clip", "decoder"}
    assert not stack.embedding_statistics().unit
