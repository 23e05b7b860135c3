"""Signals at any moment, and disks that are full: nothing that was saved is lost."""

import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.environment import environment
from tests.training import toy
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.training import checkpoint, optimizer, state
from unclip_jax.training.loop import train


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["loss", "preview", "embed"])
def test_sigterm_while_compiling_previewing_or_evaluating(tmp_path, moment):
    """The step that was reached is saved, and the run goes on to the same end."""
    config = toy.make_config(
        preview={"every": 4, "count": 4},
        evaluators={"retrieval": {"every": 4, "count": 64}},
    )

    def run(workdir, signal_in=None):
        out, stage = io.StringIO(), toy.EmbeddingStage(signal_in)
        state = train(config, workdir, stage=stage, data=toy.Data(), stream=out)
        return jax.device_get(state), out.getvalue()

    stopped, said = run(tmp_path / "toy", moment)
    assert "SIGTERM: saved step 0" in said and int(stopped.step) == 0
    resumed, _ = run(tmp_path / "toy")
    whole, _ = run(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    lines = (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()
    rows = map(json.loads, lines)
    scored = [row["step"] for row in rows if "retrieval/text_to_image@1" in row]
    assert scored == [0, 4, 8, 12]


# Fills the disk, or forbids files of more than 8 kB, when the checkpoint of step 4 is
# there and before that of step 8: at batch 6, which step 7 needs.
FULL = """
import pathlib, resource, time
from tests.training import toy
from unclip_jax.training.loop import train
workdir, how = {workdir!r}, {how!r}

class Data(toy.Data):
    def batches(self, *args, **kwargs):
        for i, batch in enumerate(super().batches(*args, **kwargs)):
            time.sleep(i > 6)  # a save takes its time to fail
            while i == 6 and not (pathlib.Path(workdir) / "checkpoints" / "4").is_dir():
                time.sleep(0.01)
            if i == 6 and how == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 2**40))
            elif i == 6:
                with open(pathlib.Path(workdir).parent / "filler", "wb", 0) as file:
                    try:
                        while True:
                            file.write(bytes(4096))
                    except OSError as error:
                        assert error.errno == 28
            yield batch

train(toy.make_config(100), workdir, stage=toy.Stage(), data=Data())
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("how", ["limit", "full"])
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, how):
    """Saving is asynchronous: its failure shows at the next row of metrics."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if how == "full":
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("needs root, to mount a small disk")
    try:
        workdir = disk / "toy"
        script = FULL.format(workdir=str(workdir), how=how)
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment(8),
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 1
        # after it, threads of libraries complain that they cannot write, either
        lines = [x for x in done.stderr.splitlines() if x.startswith("OSError: ")]
        (said,) = (x for x in lines if "intact" in x)
        assert ("File too large" if how == "limit" else "No space left") in said
        step = int(said.split("checkpoint of step ")[1].split()[0])
        if how == "limit":  # all but checkpoints can still be written
            assert f"saving step {step + 4} to {workdir}" in said
        _, meta = checkpoint.load_run(workdir)
        assert meta["step"] == step
        # of the step that was not saved two rows at most: its own, and the next
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(x)["step"] for x in lines if x.endswith("}")]
        assert steps[-1] <= step + 4 + 2
        if how == "full":
            (disk / "filler").unlink()
            config = toy.make_config(100)
            out = io.StringIO()
            train(config, workdir, stage=toy.Stage(), data=toy.Data(), stream=out)
            assert f"going on from step {step}" in out.getvalue()
    finally:
        if how == "full":
            subprocess.run(["umount", str(disk)], check=True)


def test_parameters_are_equal_on_any_mesh_at_restore(tmp_path):
    """Saved on 8 devices, restored on 4 and on 1."""
    config = toy.make_config(4, fsdp=4)
    stage, data, out = toy.Stage(), toy.Data(), io.StringIO()
    saved = jax.device_get(train(config, tmp_path, stage=stage, data=data, stream=out))
    options = optimizer.OptimizerConfig(
        learning_rate=0.01, warmup_steps=2, grad_clip_norm=1.0
    )
    tx = optimizer.make_optimizer(options, 4)
    meta = checkpoint.make_meta("toy", {}, {}, data.spec)
    for count, fsdp in ((4, 2), (1, 1)):
        mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:count])
        rules = config.sharding_rules if fsdp > 1 else ()
        abstract = state.abstract_state(stage, tx, mesh, rules)
        with jax.set_mesh(mesh), checkpoint.Checkpoints(tmp_path) as checkpoints:
            found = checkpoints.restore(abstract, meta)
        kernel = found.params["in"]["kernel"]
        assert len(kernel.sharding.device_set) == count
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), saved)
