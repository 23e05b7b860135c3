"""Runs whose folder is gs://…, in a process of its own: see bucket.py."""

import io
import json
import subprocess
import sys
import tempfile

import pytest

from tests.environment import environment
from unclip_jax.training import run_folder

RUN = "gs://models/runs/toy"


@pytest.mark.multiprocess
def test_a_run_lives_in_a_bucket(tmp_path):
    variables = environment(8, TMPDIR=str(tmp_path))
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, __file__],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    left = [str(p) for p in tmp_path.rglob("*") if "gs:" in str(p) or p.is_file()]
    assert not left, "written to the disk instead"


def test_a_bucket_without_its_client_is_refused_before_anything_else(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(ValueError, match="gs://b/r needs .*google-cloud-storage"):
        run_folder.claim("gs://b/r", {})


def scenario() -> None:
    """Stopped, half-written, gone on with, read, damaged: as on a disk."""
    from tests.training import bucket

    objects = bucket.serve()
    import jax
    import numpy as np

    from tests.training import toy
    from unclip_jax.training import checkpoint, loop

    out = io.StringIO()

    def train(workdir, steps=12, restore_step=None, **changes):
        config = toy.make_config(steps, preview={"every": 4, "count": 4}, **changes)
        stage, data = toy.Stage(), toy.Data()
        state = loop.train(
            config,
            workdir,
            stage=stage,
            data=data,
            stream=out,
            restore_step=restore_step,
        )
        return jax.device_get(state)

    def content(name):
        return objects.found[f"models/runs/toy/{name}"][0]

    with tempfile.TemporaryDirectory() as disk:
        whole = train(disk)
    train(RUN)
    # as a kill leaves it: the newest step never committed, no final status or metrics
    objects.found.pop("models/runs/toy/checkpoints/12/commit_success.txt")
    resumed = train(RUN)
    assert "going on from step 8" in out.getvalue()
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    ema, meta = checkpoint.load_run(RUN)
    jax.tree.map(np.testing.assert_array_equal, ema, whole.ema)
    assert meta["step"] == 12
    rows = [json.loads(line) for line in content("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert json.loads(content("status.json"))["done"]
    assert content("previews/00000012.png")[1:4] == b"PNG"
    boards = [name for name in objects.found if "tensorboard/" in name]
    assert len(boards) == 2  # one of each start
    try:
        train(RUN, ema_decay=0.5)
    except ValueError as error:
        assert f"{RUN} holds a run of another config" in str(error)
    else:
        raise AssertionError("another config was accepted")
    # flipped bits come back as an error or as the same values, never as others
    prefix = "models/runs/toy/checkpoints/12/ema/"
    refused = 0
    for name in [n for n in objects.found if n.startswith(prefix) and "/d/" in n]:
        good = objects.found[name][0]
        for at in (len(good) // 3, len(good) // 2):
            objects.put(name, good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
            try:
                ema, _ = checkpoint.load_run(RUN)
                jax.tree.map(np.testing.assert_array_equal, ema, whole.ema)
            except ValueError as error:
                assert f"{RUN}/checkpoints/12 cannot be restored" in str(error)
                refused += 1
        objects.put(name, good)
    assert refused
    objects.put(name, b"damaged")
    again = train(RUN, restore_step=8)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert any("/toy/set_aside_12/" in name for name in objects.found)


if __name__ == "__main__":
    scenario()
