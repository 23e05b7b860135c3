"""Features and scores are the same on any number of devices and processes."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.environment import environment
from tests.evaluation.test_memory import Model, evaluate_gradients
from unclip_jax.evaluation.features.inception import InceptionExtractor
from unclip_jax.evaluation.features.store import FeatureStore
from unclip_jax.evaluation.image_sets import ArrayImages
from unclip_jax.interop.inception import load_inception
from unclip_jax.parallel.mesh import make_mesh

PROCESS = """
import sys
import jax, numpy as np
jax.distributed.initialize({address!r}, {count}, int(sys.argv[1]))
from tests.evaluation import test_processes as t
np.savez(sys.argv[2], **t.work({shared!r}))
"""


class Extractor:
    """Features that need all their bits; computed on the devices."""

    about = {}

    def __init__(self):
        self.seen = 0

    def image(self, images):
        self.seen += len(images)
        x = jax.numpy.asarray(images.reshape(len(images), -1), jax.numpy.float32)
        return {"a": np.asarray(jax.jit(jax.numpy.sin)(x)), "b": np.asarray(x[:, :3])}


def work(workdir):
    """Features of 23 pictures in chunks of 4.

    Besides, the scores of a whole evaluation (more than one chunk) in `workdir`.
    """
    results = evaluate_gradients(workdir, 600, Model())
    scores = [score["value"] for score in results["scores"].values()]
    random = np.random.default_rng(0)
    images = ArrayImages(random.integers(0, 256, (23, 4, 4, 3), dtype=np.uint8))
    extractor = Extractor()
    features = FeatureStore(chunk=4).features(images, extractor)
    return {
        **features,
        "seen": extractor.seen,
        "scores": scores,
        "pictures": results["provenance"]["images_sha256"],
    }


@pytest.mark.multiprocess
def test_two_processes_agree_with_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = str(tmp_path / "shared")
    code = PROCESS.format(address=address, count=2, shared=shared)
    files = [tmp_path / f"{i}.npz" for i in range(2)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(i), str(file)],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, file in enumerate(files)
    ]
    for process in started:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error[-2000:]
    one, two = work(tmp_path / "alone"), [dict(np.load(file)) for file in files]
    assert [int(t["seen"]) for t in two] == [12, 11]  # the work was shared
    for found in two:
        np.testing.assert_array_equal(found["a"], one["a"])
        np.testing.assert_array_equal(found["b"], one["b"])
        np.testing.assert_array_equal(found["scores"], one["scores"])  # every digit
        assert found["pictures"] == one["pictures"]


@pytest.mark.slow
def test_inception_features_are_the_same_on_any_devices():
    images = np.random.default_rng(0).integers(0, 256, (5, 80, 80, 3), dtype=np.uint8)
    weights = load_inception("random")

    def features(count):
        mesh = make_mesh(devices=jax.devices()[:count])
        extractor = InceptionExtractor(weights, "clean", ("64",), 8, mesh)
        return extractor.image(images)["64"]

    one = features(1)
    assert one.shape == (5, 64) and one.std() > 0.01
    for devices in (2, 8):
        np.testing.assert_allclose(features(devices), one, rtol=2e-6)
