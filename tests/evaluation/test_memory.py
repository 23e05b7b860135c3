"""Peak memory does not grow with the number of pictures; a kill loses nothing.

    python -m tests.evaluation.test_memory WORKDIR COUNT [WHAT CALL]

evaluates COUNT pictures of 128 x 128 in this process and prints its peak memory and the
scores; it kills itself (SIGKILL) at the CALL-th call of WHAT, "draw" or "look".
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.environment import ROOT, environment
from unclip_jax.config import load

pytestmark = pytest.mark.multiprocess
SIZE = 128
FEW, MANY = 640, 1920  # both more than a chunk of the feature store
PICTURE = SIZE * SIZE * 3 / 2**20  # MiB


def gradients(numbers, seed):
    """uint8 (N, SIZE, SIZE, 3), another picture for another number."""
    out = np.empty((len(numbers), SIZE, SIZE, 3), np.uint8)
    ramp = np.arange(SIZE, dtype=np.uint8)
    for image, i in zip(out, numbers, strict=True):
        colours = np.random.default_rng((seed, i)).integers(0, 256, (2, 3), np.uint8)
        image[:] = ramp[:, None, None] * colours[0] + ramp[:, None] * colours[1]
    return out


class Source:
    """Any number of pictures, made when asked for."""

    fingerprint = "gradients"

    def __len__(self):
        return 10_000

    def __getitem__(self, i):
        return {"key": str(i), "caption": f"number {i}", "image": gradients([i], 1)[0]}


class Model:
    """Draws gradients; its CLIP sees 48 means."""

    image_size = SIZE

    def __init__(self, what="", call=0):
        self.what, self.left = what, call

    def settings(self, **options):
        return {"decoder": {"guidance": options.get("decoder_guidance", 1.0)}}

    def text2image(self, captions, seed=0, first=0, progress=None, **options):
        self._call("draw")
        return gradients(range(first, first + len(captions)), seed)

    def fit_for_clip(self, images):
        return images

    def encode_image(self, images, progress=None):
        self._call("look")
        blocks = images.reshape(len(images), 4, SIZE // 4, 4, SIZE // 4, 3)
        means = blocks.mean((2, 4), dtype=np.float32)
        return means.reshape(len(images), -1) / 255

    def encode_text(self, captions, progress=None):
        numbers = [int(caption.split()[1]) for caption in captions]
        return np.sin(np.outer(numbers, np.arange(1, 49))).astype(np.float32)

    def _call(self, what):
        self.left -= what == self.what
        if what == self.what and not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def evaluate_gradients(workdir, count, model):
    """What results.json holds of `count` pictures."""
    from unclip_jax.evaluation import inputs
    from unclip_jax.evaluation.runner import evaluate

    config = load(str(ROOT / "configs/icons/eval.py"))
    with config.unlocked():
        config.count = config.reference.count = int(count)
        config.generation.batch_size = 64
        config.metrics = {"clip_score": {}, "frechet": {}}
        config.report = {"pictures": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "make_source", lambda data: Source())
        return evaluate(config, workdir, model=model, fingerprint="m", log=len)


def main(workdir, count, what="", call=0):
    results = evaluate_gradients(workdir, count, Model(what, int(call)))
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024  # MiB
    scores = {name: score["value"] for name, score in results["scores"].items()}
    images = results["provenance"]["images_sha256"]
    print(json.dumps({"peak": peak, "scores": scores, "images": images}))


def run(workdir, count, *killed):
    """What `main` prints, run in a process of its own; None when it was killed."""
    program = [sys.executable, "-m", "tests.evaluation.test_memory"]
    done = subprocess.run(
        [*program, *map(str, (workdir, count, *killed))],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    if killed:
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        return None
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return run(tmp_path_factory.mktemp("few"), FEW)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux's peak")
def test_peak_memory_does_not_grow_with_the_number_of_pictures(few, tmp_path):
    many = run(tmp_path, MANY)
    grown = many["peak"] - few["peak"]
    kept = (MANY - FEW) * PICTURE  # what one copy of the pictures in memory would cost
    print(f"{few['peak']:.0f} MiB for {FEW}, {many['peak']:.0f} MiB for {MANY}")
    assert grown < kept / 2


def test_a_killed_process_loses_one_batch(few, tmp_path):
    run(tmp_path, FEW, "draw", 4)
    kept = sorted(p.name for p in (tmp_path / "generated").rglob("*.png"))
    assert len(kept) == 192 and kept[-1] == "000191.png"
    run(tmp_path, FEW, "look", 2)
    assert len(list((tmp_path / "features").rglob("features_*.npz"))) == 1
    again = run(tmp_path, FEW)
    assert again["scores"] == few["scores"] and again["images"] == few["images"]


if __name__ == "__main__":
    main(*sys.argv[1:])
