"""Times the training step of a config, on this machine's devices and without data.

    python -m benchmarks.train --config=configs/icons/prior.py
    python -m benchmarks.train --config=configs/karlo/decoder.py --config.mesh.fsdp=1 \\
        --config.batch_size=64 --out=decoder.json

The step is a run's own: loss, gradient, clipping, optimizer, EMA and the rule that
skips steps which are not finite. Its batch is random and stays on the devices, so that
the time of the data does not count. What a run would read from its records, such as
embed_dim, is the paper's value unless --assume gives another.

Prints seconds to initialize and to compile, the median and the range of a step's
seconds, examples/s, the model's operations (forward and backward, without what
rematerialization computes again) with their share of the devices' peak (MFU), and the
most memory that a device had in use. --matmul measures the peak that a matrix product
reaches, which is below the data sheet's.

--versus=torch times it beside diffusers' module of the same size (a prior or a UNet
decoder on CLIP's states) with PyTorch's fused AdamW, in turns, and prints a table:

    python -m benchmarks.train --config=benchmarks/small.py:prior --versus=torch \\
        --assume=embed_dim=768 --assume=context_length=77

An embedding prior of token grids is timed beside one of dalle2-pytorch's layers, with
that package and what it needs in FOLDER (pip install --no-deps --target):

    PYTHONPATH=FOLDER python -m benchmarks.train --versus=torch \\
        --config=benchmarks/small.py:grid --assume=embed_dim=1664 \\
        --assume=target_tokens=256 --assume=condition_tokens=256
"""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import torch_step, turns
from unclip_jax import command_line, stages
from unclip_jax.errors import UsageError
from unclip_jax.parallel import batches, sharding
from unclip_jax.parallel.mesh import make_mesh
from unclip_jax.planning.plan import assumed_spec, parse_assumptions
from unclip_jax.train import defaults
from unclip_jax.training import optimizer, train_step
from unclip_jax.training import state as train_state
from unclip_jax.training.flops import model_flops
from unclip_jax.training.hardware import peak_flops
from unclip_jax.training.run_config import TrainConfig, read_config

FLAGS = {
    "steps": (10, "timed steps, after two that are not"),
    "assume": ([], "NAME=NUMBER: a property of the data; may be repeated"),
    "matmul": (False, "measure what a bfloat16 matrix product reaches, too"),
    "versus": ("", '"torch": time it beside PyTorch, in turns'),
    "rounds": (5, "of --versus, each of about four seconds"),
    "out": ("", "a file for the numbers, as JSON"),
}


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """What one config takes on these devices; seconds unless said otherwise."""

    stage: str
    device: str
    devices: int
    dtype: str
    batch_size: int
    parameters: int
    init: float
    compile: float
    step: float
    step_range: tuple[float, float]
    examples_per_second: float
    tflop_per_step: float
    mfu: float | None  # of the data sheet's peak
    matmul_tflops: float | None  # of one device
    memory_gib: float | None
    loss: float


def random_batch(stage, batch_size: int, vocab_size: int, seed: int = 0):
    """A batch of the stage's shapes: pixels, tokens and embeddings of unit norm."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, (shape, dtype) in stage.batch_spec.items():
        shape = (batch_size, *shape)
        if dtype == "uint8":
            batch[name] = rng.integers(0, 256, shape, np.uint8)
        elif np.issubdtype(np.dtype(dtype), np.integer):
            batch[name] = rng.integers(1, vocab_size, shape).astype(dtype)
        else:
            rows = rng.standard_normal(shape, np.float32)
            norm = np.linalg.norm(rows, axis=-1, keepdims=True)
            batch[name] = (rows / norm).astype(dtype)
    return batch


def matmul_peak(size: int = 8192, repeats: int = 20) -> float:
    """bfloat16 operations per second of a product of two (size, size) matrices."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    product = jax.jit(jnp.matmul)
    product(a, b).block_until_ready()
    start = time.perf_counter()
    for _ in range(repeats):
        result = product(a, b)
    result.block_until_ready()
    return 2 * size**3 * repeats / (time.perf_counter() - start)


@dataclasses.dataclass
class Step:
    """A compiled training step with a state and a batch; `run` does one and waits."""

    stage: Any
    mesh: Any
    flops: int
    parameters: int
    init: float  # seconds
    compile: float
    state: Any
    batch: Any
    rng: Any
    compiled: Any

    def run(self) -> float:
        """Does a step; returns its loss."""
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.compiled(self.state, self.rng, self.batch)
            return float(metrics["loss"])


def make_step(config: TrainConfig, assume: Mapping[str, Any]) -> Step:
    """Initializes and compiles the training step of `config`."""
    spec = assumed_spec(config, assume)
    stage = stages.make_stage(config, spec)
    tx = optimizer.make_optimizer(config.optimizer, config.steps)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    batches.check_batch_size(config.batch_size, mesh, config.grad_accum)
    with jax.set_mesh(mesh):
        abstract = train_state.abstract_state(
            stage, tx, mesh, config.sharding_rules, config.ema_profiles
        )
        start = time.perf_counter()
        state = train_state.init_sharded(stage, tx, config.seed, abstract)
        jax.block_until_ready(state)
        init = time.perf_counter() - start

        start = time.perf_counter()
        compiled = train_step.lower_step(stage, tx, mesh, config, abstract).compile()
        compile_seconds = time.perf_counter() - start

        batch = random_batch(stage, config.batch_size, spec.vocab_size)
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        rng = jax.device_put(jax.random.key(config.seed), sharding.replicated(mesh))
        return Step(
            stage=stage,
            mesh=mesh,
            flops=model_flops(stage, config.batch_size, abstract.params),
            parameters=sum(leaf.size for leaf in jax.tree.leaves(abstract.params)),
            init=init,
            compile=compile_seconds,
            state=state,
            batch=batch,
            rng=rng,
            compiled=compiled,
        )


def time_step(config: TrainConfig, assume: dict[str, Any], steps: int) -> StepTimes:
    """Initializes, compiles and times the training step of `config`."""
    step = make_step(config, assume)
    seconds = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        loss = step.run()
        seconds.append(time.perf_counter() - start)
    seconds = seconds[2:]

    device, devices = jax.devices()[0], step.mesh.size
    median, peak = statistics.median(seconds), peak_flops(device.device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return StepTimes(
        stage=config.stage,
        device=device.device_kind,
        devices=devices,
        dtype=config.compute_dtype,
        batch_size=config.batch_size,
        parameters=step.parameters,
        init=step.init,
        compile=step.compile,
        step=median,
        step_range=(min(seconds), max(seconds)),
        examples_per_second=config.batch_size / median,
        tflop_per_step=step.flops / 1e12,
        mfu=step.flops / median / devices / peak if peak else None,
        matmul_tflops=None,
        memory_gib=memory / 2**30 if memory else None,
        loss=loss,
    )


def make(config, assume):
    """Returns (step, what to know of it), for `turns.in_turns`."""
    work = time.process_time()
    step = make_step(read_config(config), assume)
    seconds = time.process_time() - work
    step.run()
    about = {
        "parameters": step.parameters,
        "init, s": round(step.init, 1),
        "compilation, s": round(step.compile, 1),
        "both, s of CPU": round(seconds, 1),
        "GFLOP a step": round(step.flops / 1e9, 1),
    }
    return step.run, about


def versus_torch(config, assume, rounds: int) -> list[turns.Times]:
    """Times the step beside PyTorch's, in both of its memory layouts for images."""
    programs: dict[str, Any] = {
        "torch": (torch_step.make, (config, assume, False)),
        "torch, channels_last": (torch_step.make, (config, assume, True)),
        "unclip_jax": (make, (config, assume)),
    }
    if config.stage != "decoder":
        del programs["torch, channels_last"]
    return turns.in_turns(programs, rounds)


def describe(times: StepTimes) -> str:
    """The lines that a reader wants."""
    low, high = times.step_range
    lines = [
        f"{times.stage}, {times.parameters:,} parameters, {times.dtype}, "
        f"batches of {times.batch_size} on {times.devices} x {times.device}",
        f"  initialized in {times.init:.1f} s, compiled in {times.compile:.1f} s",
        f"  a step takes {times.step:.4g} s ({low:.4g} to {high:.4g}): "
        f"{times.examples_per_second:,.1f} examples/s",
    ]
    speed = times.tflop_per_step / times.step
    use = f"  {times.tflop_per_step:.3g} TFLOP a step, {speed:.3g} TFLOP/s"
    if times.mfu:
        use += f", MFU {times.mfu:.1%}"
    if times.matmul_tflops:
        share = speed / times.devices / times.matmul_tflops
        use += f"; {share:.1%} of a matrix product's {times.matmul_tflops:.3g}"
    lines.append(use)
    if times.memory_gib:
        lines.append(f"  {times.memory_gib:.1f} GiB in use at the most")
    return "\n".join(lines)


def main(args):
    """Times the step of args.config, prints it and writes it to args.out."""
    config, assume = read_config(args.config), parse_assumptions(args.assume)
    if args.versus not in ("", "torch"):
        raise UsageError(f"--versus={args.versus}: expected torch")
    if args.versus:
        found = versus_torch(args.config, assume, args.rounds)
        print(turns.table(found), flush=True)
        numbers = [dataclasses.asdict(times) for times in found]
    else:
        times = time_step(config, assume, args.steps)
        if args.matmul:
            times = dataclasses.replace(times, matmul_tflops=matmul_peak() / 1e12)
        print(describe(times), flush=True)
        numbers = dataclasses.asdict(times)
    if args.out:
        text = json.dumps(numbers, indent=1)
        pathlib.Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    command_line.run(main, defaults=defaults, workdir=False, extra_flags=FLAGS)
