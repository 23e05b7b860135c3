"""A stage and data small enough to train in a second; also run as a program.

python toy.py WORKDIR FSDP STEPS [PAUSE [COORDINATOR NUM_PROCESSES PROCESS_ID]]

trains; PAUSE seconds pass before each batch, with TOY_SLOW=PROCESS_ID only of that
process. With TOY_SIGTERM_IN=loss (preview, embed)
the last process sends itself a SIGTERM when that is compiled, once; it then previews
and evaluates, too.
"""

import os
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from unclip_jax.data_spec import DataSpec


class Stage:
    """Denoises points on a line with a two-layer network."""

    batch_spec = {"x": ((16,), "float32")}

    def __init__(self, sigterm_in: str | None = None):
        self._sigterm_in = sigterm_in

    def _compiled(self, what):
        if what == self._sigterm_in and jax.process_index() == jax.process_count() - 1:
            self._sigterm_in = None
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)  # so that the handler has run, in whichever thread

    def init(self, rng):
        a, b = jax.random.split(rng)
        return {
            "in": {"kernel": 0.1 * jax.random.normal(a, (16, 32))},
            "out": {"kernel": 0.1 * jax.random.normal(b, (32, 16))},
        }

    def loss(self, params, rng, batch):
        self._compiled("loss")
        noisy = batch["x"] + 0.1 * jax.random.normal(rng, batch["x"].shape)
        out = jnp.tanh(noisy @ params["in"]["kernel"]) @ params["out"]["kernel"]
        loss = jnp.square(out - batch["x"]).mean()
        return loss, {"largest": jnp.abs(out).max()}

    def preview(self, params, rng, batch):
        self._compiled("preview")
        images = jnp.broadcast_to(batch["x"][:, :, None, None], (4, 16, 16, 3))
        return (jnp.abs(images) * 50).astype(jnp.uint8)

    def export(self):
        return {"part": "toy", "config": {"width": 32}}


class EmbeddingStage(Stage):
    """With features that evaluators can score."""

    def embed(self, params, rng, batch):
        self._compiled("embed")
        image = batch["x"] @ params["in"]["kernel"]
        return {"image": image, "text": image[:, ::-1]}


class Data:
    """Rows that depend on (seed, step) only."""

    spec = DataSpec(
        fingerprint="toy", embedding_mean=np.zeros(3), embedding_sample=print
    )

    def __init__(self, pause=0.0, poison=()):
        self.pause, self.poison, self.first_steps = pause, poison, []

    def __len__(self):
        return 1000

    def _rows(self, seed, step, n):
        rng = np.random.default_rng([seed, step])
        x = rng.standard_normal((n, 1)).astype(np.float32) * np.ones((1, 16), "f")
        return np.full_like(x, np.nan) if step in self.poison else x

    def batches(self, names, seed, batch_size, start_step=0, rows=None):
        assert names == ("x",)
        self.first_steps.append(start_step)
        step = start_step
        while True:
            time.sleep(self.pause)
            yield {"x": self._rows(seed, step, batch_size)[rows]}
            step += 1

    def take(self, n, names, rows=None):
        return {"x": self._rows(0, 0, n)}


def make_config(steps=12, fsdp=1, **changes):
    from unclip_jax.training.run_config import read_config

    c = ml_collections.ConfigDict()
    c.stage, c.seed, c.steps, c.batch_size, c.grad_accum = "toy", 0, steps, 16, 1
    c.compute_dtype = "float32"
    c.data, c.model, c.diffusion, c.stage_options = {}, {}, {}, {}
    c.optimizer = {"learning_rate": 0.01, "warmup_steps": 2, "grad_clip_norm": 1.0}
    c.ema_decay = 0.9
    c.mesh = {"data": -1, "fsdp": fsdp, "tensor": 1}
    c.sharding_rules = ((r"(in|out)/kernel", ("fsdp", None)),) if fsdp > 1 else ()
    c.log_every = 2
    c.checkpoint = {"every": 4, "keep": 2}
    c.preview = {"every": 0, "count": 4}
    c.update(changes)
    return read_config(c)


def main(workdir, fsdp, steps, pause=0.0, *process):
    # training needs no torch, but tensorboardX imports it where it is installed
    sys.modules["torch"] = None
    from unclip_jax.parallel.distributed import run_distributed

    def run():
        from unclip_jax.training.loop import train

        changes, signal_in = {}, os.environ.get("TOY_SIGTERM_IN")
        if signal_in:
            changes["preview"] = {"every": 4, "count": 4}
            changes["evaluators"] = {"retrieval": {"every": 4, "count": 64}}
        config = make_config(int(steps), int(fsdp), **changes)
        stage = EmbeddingStage(signal_in)
        slow = os.environ.get("TOY_SLOW", process[-1] if process else "")
        is_slow = not process or slow == process[-1]
        data = Data(float(pause) if is_slow else 0.0)
        train(config, workdir, stage=stage, data=data)

    if not process:
        return run()
    address, count, number = process
    args = types.SimpleNamespace(
        distributed="on",
        coordinator=address,
        num_processes=int(count),
        process_id=int(number),
        connect_timeout=20,
        heartbeat_timeout=10,
    )
    run_distributed(run, args)


if __name__ == "__main__":
    main(*sys.argv[1:])
